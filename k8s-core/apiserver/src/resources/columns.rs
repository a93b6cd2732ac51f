//! Printer columns: the output of `kubectl get`, computed by the server.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::str_at;

mod cells;
mod plugins;
mod tables;

use cells::containers;
pub use cells::selector_text;
pub(super) use plugins::*;
pub(super) use tables::*;

/// Source of a cell's value.
#[derive(Clone, Copy, Debug)]
pub enum Cell {
    /// Value at a JSON pointer.
    Path(&'static str),
    /// Age of the time at a JSON pointer.
    Age(&'static str),
    /// Computed by a function.
    Fn(fn(&Value, Timestamp) -> Value),
}

/// A printer column of a built-in type.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Column heading, as kubectl prints it in upper case.
    pub name: &'static str,
    /// Type: `string`, `integer` or `date`.
    pub kind: &'static str,
    /// Format: `name` for the first column.
    pub format: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: i32,
    /// Source of the value.
    pub cell: Cell,
}

/// A printer column of a custom resource.
#[derive(Clone, Debug)]
pub struct CustomColumn {
    /// Column heading, as kubectl prints it in upper case.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    /// OpenAPI format (`name` marks the object's name); empty for none.
    pub format: String,
    /// Description in the Table; kubectl does not print it.
    pub description: String,
    /// 0: always shown; above: with `-o wide`.
    pub priority: i32,
    /// Simple JSON path such as `.spec.engine`.
    pub path: String,
}

const fn path(name: &'static str, pointer: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0, cell: Cell::Path(pointer) }
}
const fn number(name: &'static str, pointer: &'static str) -> Column {
    Column { name, kind: "integer", format: "", priority: 0, cell: Cell::Path(pointer) }
}
const fn computed(name: &'static str, f: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, kind: "string", format: "", priority: 0, cell: Cell::Fn(f) }
}
const fn count(name: &'static str, f: fn(&Value, Timestamp) -> Value) -> Column {
    Column { name, kind: "string", format: "", priority: 0, cell: Cell::Fn(f) }
}
const fn typed(kind: &'static str, mut column: Column) -> Column {
    column.kind = kind;
    column
}
const fn wide(mut column: Column) -> Column {
    column.priority = 1;
    column
}
const NAME: Column =
    Column { name: "Name", kind: "string", format: "name", priority: 0, cell: Cell::Path("/metadata/name") };
const AGE: Column = Column {
    name: "Age",
    kind: "string",
    format: "",
    priority: 0,
    cell: Cell::Age("/metadata/creationTimestamp"),
};
const CREATED_AT: Column = typed("date", path("Created At", "/metadata/creationTimestamp"));
const CONTAINERS: Column = wide(computed("Containers", |o, _| containers(o, "name")));
const IMAGES: Column = wide(computed("Images", |o, _| containers(o, "image")));
const SELECTOR: Column = wide(computed("Selector", |o, _| selector_text(o.pointer("/spec/selector")).into()));

/// Formats a duration like kubectl: at most two units.
#[must_use]
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        s if s < 0 => "<invalid>".into(),
        s if s < 120 => format!("{s}s"),
        s if s < 600 => two(minutes, "m", s % 60, "s"),
        s if s < 3 * 3600 => format!("{minutes}m"),
        s if s < 8 * 3600 => two(hours, "h", minutes % 60, "m"),
        s if s < 48 * 3600 => format!("{hours}h"),
        s if s < 8 * 86400 => two(days, "d", hours % 24, "h"),
        s if s < 2 * 365 * 86400 => format!("{days}d"),
        s if s < 8 * 365 * 86400 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// Formats the age of an RFC 3339 time; `<unknown>` if it is absent.
#[must_use]
pub fn age(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(then) => human_duration(now.as_second() - then.as_second()),
        Err(_) => "<unknown>".into(),
    }
}

impl Column {
    /// Returns the cell of an object.
    #[must_use]
    pub fn value(&self, object: &Value, now: Timestamp) -> Value {
        match self.cell {
            Cell::Path(pointer) => match object.pointer(pointer) {
                Some(value) => value.clone(),
                None if self.kind == "integer" => 0.into(),
                None => "".into(),
            },
            Cell::Age(pointer) => age(str_at(object, pointer), now).into(),
            Cell::Fn(f) => f(object, now),
        }
    }
}

impl CustomColumn {
    /// Returns the cell of an object; `null` if the path does not exist.
    #[must_use]
    pub fn value(&self, object: &Value, now: Timestamp) -> Value {
        let found = simple_path(object, &self.path);
        match (self.kind.as_str(), found) {
            ("date", Some(Value::String(time))) => age(time, now).into(),
            ("integer" | "number" | "boolean", Some(value)) => value.clone(),
            (_, Some(Value::String(s))) => s.clone().into(),
            (_, Some(value)) => value.to_string().into(),
            (_, None) => Value::Null,
        }
    }
}

/// Evaluates a simple JSON path: `.a.b`, `.a["b"]`, `.a[0]`, `.a[?(@.type=="Ready")].status`.
#[must_use]
pub fn simple_path<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut at = object;
    let mut rest = path.trim_matches(['{', '}']).trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let mut end = 0;
            let bytes = after.as_bytes();
            while end < bytes.len() && bytes[end] != b'.' && bytes[end] != b'[' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            let end = end.min(after.len());
            let key = after.get(..end)?.replace('\\', "");
            at = at.get(&key)?;
            rest = after.get(end..)?;
        } else if let Some(after) = rest.strip_prefix("[?(@.") {
            let (condition, tail) = after.split_once(")]")?;
            let (field, wanted) = condition.split_once("==")?;
            let wanted = wanted.trim().trim_matches(['"', '\'']);
            at = at.as_array()?.iter().find(|i| str_at(i, &format!("/{}", field.trim())) == wanted)?;
            rest = tail;
        } else if let Some(after) = rest.strip_prefix('[') {
            let (index, tail) = after.split_once(']')?;
            at = match index.parse::<usize>() {
                Ok(i) => at.get(i)?,
                Err(_) => at.get(index.trim_matches(['"', '\'']))?,
            };
            rest = tail;
        } else {
            return None;
        }
    }
    Some(at)
}

/// Returns the default columns of custom resources.
#[must_use]
pub fn custom_default() -> CustomColumn {
    CustomColumn {
        name: "Age".into(),
        kind: "date".into(),
        format: String::new(),
        description: String::new(),
        priority: 0,
        path: ".metadata.creationTimestamp".into(),
    }
}

/// Returns the row of an object as JSON cells.
#[must_use]
pub fn cells(columns: &super::Columns, object: &Value, now: Timestamp) -> Vec<Value> {
    match columns {
        super::Columns::Static(columns) => columns.iter().map(|c| c.value(object, now)).collect(),
        super::Columns::Custom(columns) => {
            std::iter::once(object.pointer("/metadata/name").cloned().unwrap_or_default())
                .chain(columns.iter().map(|c| c.value(object, now)))
                .collect()
        }
    }
}

/// Returns the headings as `columnDefinitions`.
#[must_use]
pub fn definitions(columns: &super::Columns) -> Value {
    let one = |name: &str, kind: &str, format: &str, description: &str, priority: i32| json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority});
    let name = || one("Name", "string", "name", "Name must be unique within a namespace.", 0);
    match columns {
        super::Columns::Static(columns) => {
            columns.iter().map(|c| one(c.name, c.kind, c.format, "", c.priority)).collect()
        }
        super::Columns::Custom(columns) => std::iter::once(name())
            .chain(columns.iter().map(|c| one(&c.name, &c.kind, &c.format, &c.description, c.priority)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        cells::{pod_ready, pod_restarts, pod_status},
        *,
    };

    #[test]
    fn durations_have_at_most_two_units() {
        for (seconds, want) in [
            (5, "5s"),
            (119, "119s"),
            (125, "2m5s"),
            (600, "10m"),
            (10_900, "3h1m"),
            (90_000, "25h"),
            (180_000, "2d2h"),
            (900_000, "10d"),
        ] {
            assert_eq!(human_duration(seconds), want);
        }
    }

    #[test]
    fn a_crashing_pod_says_so() {
        let pod = json!({"spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running", "containerStatuses": [
            {"name": "c", "restartCount": 3, "ready": false, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}});
        assert_eq!(pod_status(&pod, Timestamp::UNIX_EPOCH), "CrashLoopBackOff");
        assert_eq!(pod_ready(&pod, Timestamp::UNIX_EPOCH), "0/1");
        assert_eq!(pod_restarts(&pod, Timestamp::UNIX_EPOCH), "3");
    }

    #[test]
    fn simple_paths() {
        let object = json!({"a": {"b.c": [1, {"type": "Ready", "status": "True"}]}});
        assert_eq!(simple_path(&object, ".a['b.c'][0]"), Some(&json!(1)));
        assert_eq!(simple_path(&object, ".a.b\\.c[?(@.type==\"Ready\")].status"), Some(&json!("True")));
        assert_eq!(simple_path(&object, ".a.x"), None);
        assert_eq!(simple_path(&object, "nonsense"), None);
    }
}
