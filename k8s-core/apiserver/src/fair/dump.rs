//! Debug endpoints: levels, queues and requests as text.

use std::{fmt::Display, time::Duration};

use http::Method;
use jiff::{SignedDuration, Timestamp};

use super::{Fairness, level::Level};
use crate::request::{Query, RequestInfo};

/// Prefix of the endpoints' paths.
pub(crate) const PATH: [&str; 2] = ["debug", "api_priority_and_fairness"];

const LEVELS: [&str; 10] = [
    "PriorityLevelName",
    "ActiveQueues",
    "IsIdle",
    "IsQuiescing",
    "WaitingRequests",
    "ExecutingRequests",
    "DispatchedRequests",
    "RejectedRequests",
    "TimedoutRequests",
    "CancelledRequests",
];
const QUEUES: [&str; 9] = [
    "PriorityLevelName",
    "Index",
    "PendingRequests",
    "ExecutingRequests",
    "SeatsInUse",
    "NextDispatchR",
    "InitialSeatsSum",
    "MaxSeatsSum",
    "TotalWorkSum",
];
const REQUESTS: [&str; 10] = [
    "PriorityLevelName",
    "FlowSchemaName",
    "QueueIndex",
    "RequestIndexInQueue",
    // Spelled as upstream.
    "FlowDistingsher",
    "ArriveTime",
    "InitialSeats",
    "FinalSeats",
    "AdditionalLatency",
    "StartTime",
];
const DETAILS: [&str; 8] =
    ["UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource"];

/// Cells in columns that are as wide as their widest cell.
#[derive(Default)]
struct Table(Vec<Vec<String>>);

impl Table {
    fn new(head: &[&str]) -> Self {
        Table(vec![head.iter().map(ToString::to_string).collect()])
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }

    /// Returns lines of cells with a comma and spaces between them.
    fn text(&self) -> String {
        let columns = self.0.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.0
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(|column| (width(column) + 2).max(8)).collect();
        let mut text = String::new();
        for row in &self.0 {
            for (i, cell) in row.iter().enumerate() {
                if i + 1 < row.len() {
                    text += &format!("{:<1$}", format!("{cell},"), widths[i]);
                } else {
                    text += cell;
                }
            }
            text.push('\n');
        }
        text
    }
}

fn shown<const N: usize>(cells: [&dyn Display; N]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

impl Fairness {
    /// Returns the text of an endpoint by the last part of its path; `None` if there is none. `now` is
    /// the time of day.
    pub(crate) fn dump(&self, what: &str, query: &Query, now: Timestamp) -> Option<String> {
        let at = |time: Duration| {
            let ago = SignedDuration::try_from(self.now().saturating_sub(time)).unwrap_or_default();
            now.saturating_sub(ago).map_or_else(|_| String::new(), |time| time.to_string())
        };
        let table = self.with_levels(|levels| match what {
            "dump_priority_levels" => Some(priority_levels(levels)),
            "dump_queues" => Some(queues(levels)),
            "dump_requests" => Some(requests(levels, !query.get("includeRequestDetails").is_empty(), &at)),
            _ => None,
        })?;
        Some(table.text())
    }
}

fn priority_levels(levels: &[Level]) -> Table {
    let mut table = Table::new(&LEVELS);
    for level in levels {
        let (queues, counts) = (&level.queues, &level.counts);
        table.row(shown([
            &level.name,
            &queues.views().filter(|queue| queue.waiting > 0).count(),
            &(queues.waiting() + queues.running() == 0),
            &level.quiescing,
            &queues.waiting(),
            &queues.running(),
            &counts.dispatched,
            &counts.rejected,
            &counts.timed_out,
            &counts.cancelled,
        ]));
    }
    table
}

fn queues(levels: &[Level]) -> Table {
    let mut table = Table::new(&QUEUES);
    for level in levels {
        for (i, queue) in level.queues.views().enumerate() {
            table.row(shown([
                &level.name,
                &i,
                &queue.waiting,
                &queue.running,
                &queue.running_seats,
                &format_args!("{:.8}ss", queue.next_start),
                &queue.waiting_seats,
                &queue.waiting_seats,
                &format_args!("{:.8}ss", queue.waiting_work),
            ]));
        }
    }
    table
}

fn requests(levels: &[Level], details: bool, at: &dyn Fn(Duration) -> String) -> Table {
    let more: &[&str] = if details { &DETAILS } else { &[] };
    let mut table = Table::new(&[&REQUESTS, more].concat());
    for level in levels {
        for (id, held) in &level.requests {
            let place = |place: Option<usize>| place.map_or("-1".to_owned(), |place| place.to_string());
            let (queue, index) = level.queues.place(*id);
            let info = RequestInfo::parse(&Method::GET, &held.path, &Query::default());
            // Upstream's text for the zero time.
            let started = held.started.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), at);
            let mut cells = shown([
                &level.name,
                &held.schema.name,
                &place(queue),
                &place(index),
                &held.schema.flow(&held.user, &info.namespace),
                &at(held.arrived),
                &held.seats,
                &0,
                &"0s",
                &started,
            ]);
            if details {
                let version = match info.group.is_empty() {
                    true => info.version.clone(),
                    false => format!("{}/{}", info.group, info.version),
                };
                cells.extend(shown([
                    &held.user,
                    &held.verb,
                    &held.path,
                    &info.namespace,
                    &info.name,
                    &version,
                    &info.resource,
                    &info.subresource,
                ]));
            }
            table.row(cells);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut table = Table::new(&["Name", "N", "Last"]);
        table.row(["a-long-name".into(), "1".into(), "x".into()]);
        assert_eq!(table.text(), "Name,        N,      Last\na-long-name, 1,      x\n");
    }
}
