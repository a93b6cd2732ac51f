//! Metrics of the process itself, with the names that all Prometheus clients use: CPU time, memory, open
//! files, start time. On systems without `/proc` there are none.

use std::fs;

use crate::{Collector, Encoder, MetricType, Registry};

/// Kernel ticks per second, as user space sees them on every Linux architecture.
const TICKS: f64 = 100.0;

/// The process that reads it.
#[derive(Clone, Copy, Debug)]
struct Process;

/// Adds the metrics `process_*` to a registry, once.
pub fn register(registry: &Registry) {
    registry.register_collector("process", Process);
}

impl Collector for Process {
    fn encode(&self, encoder: &mut Encoder<'_>) {
        let Ok(stat) = fs::read_to_string("/proc/self/stat") else { return };
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
        let kilobytes = |key| line(&status, key).map(|n| n * 1024.0);
        let files = fs::read_dir("/proc/self/fd").ok().map(|all| all.count() as f64);
        // Fields of proc(5), counted after the name in parentheses, which may contain spaces: 14 and 15 are the
        // CPU time, 22 is the start.
        let fields: Vec<f64> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0.0))
            .collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS);
        let start = field(22).zip(line(&machine, "btime")).map(|(ticks, boot)| boot + ticks / TICKS);
        let (counter, gauge) = (MetricType::Counter, MetricType::Gauge);
        let rows = [
            ("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", counter, cpu),
            ("process_resident_memory_bytes", "Resident memory size in bytes.", gauge, kilobytes("VmRSS:")),
            ("process_virtual_memory_bytes", "Virtual memory size in bytes.", gauge, kilobytes("VmSize:")),
            ("process_open_fds", "Number of open file descriptors.", gauge, files),
            (
                "process_max_fds",
                "Maximum number of open file descriptors.",
                gauge,
                line(&limits, "Max open files"),
            ),
            (
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                gauge,
                start,
            ),
        ];
        for (name, help, kind, value) in rows {
            if let Some(value) = value {
                encoder.describe(name, help, kind).sample(&[], value);
            }
        }
    }
}

/// Returns the number after `key` at the start of a line.
fn line(text: &str, key: &str) -> Option<f64> {
    let rest = text.lines().find_map(|l| l.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_shows_its_resources() {
        let registry = Registry::default();
        register(&registry);
        register(&registry);
        let mut text = String::new();
        crate::encode(&mut text, &registry);
        let value = |name: &str| {
            let begin = format!("\n{name} ");
            assert_eq!(text.matches(&begin).count(), 1, "{name}: {text}");
            let rest = text.split_once(&begin).unwrap().1;
            rest.lines().next().unwrap().parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age} s old");
        assert!(value("process_cpu_seconds_total") < 3600.0);
    }
}
