//! Text edits of a kubeconfig that leave all other lines unchanged.
//!
//! Supports block style with one top-level key per line, as kubectl writes it. For any other style the
//! functions return `None` or a text with another meaning; the caller parses and compares the result.

use k8s_core::client::Kubeconfig;
use serde::Serialize;

/// The three lists of named entries.
const LISTS: [&str; 3] = ["clusters", "contexts", "users"];

/// Returns the text with the entries of `config` added or updated, and the current context set.
pub(super) fn merged(text: &str, config: &Kubeconfig, current: &str) -> Option<String> {
    let mut lines = lines_of(text)?;
    let name = &config.current_context;
    for list in LISTS {
        let entry = match list {
            "clusters" => entry_of(&config.clusters),
            "contexts" => entry_of(&config.contexts),
            _ => entry_of(&config.users),
        }?;
        take_entry(&mut lines, list, name);
        add_entry(&mut lines, list, &entry);
    }
    set_scalar(&mut lines, "current-context", current);
    Some(join(&lines))
}

/// Returns the text without the entries `name`, and with the current context set.
pub(super) fn removed(text: &str, name: &str, current: &str) -> Option<String> {
    let mut lines = lines_of(text)?;
    for list in LISTS {
        take_entry(&mut lines, list, name);
    }
    set_scalar(&mut lines, "current-context", current);
    Some(join(&lines))
}

/// Returns the lines of a text in block style.
fn lines_of(text: &str) -> Option<Vec<String>> {
    let is_block =
        !text.trim().is_empty() && !text.trim_start().starts_with(['{', '[']) && !text.contains('\t');
    is_block.then(|| text.lines().map(str::to_owned).collect())
}

fn join(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

/// Returns one list entry as lines, the first without its dash.
fn entry_of(entries: &[impl Serialize]) -> Option<Vec<String>> {
    let text = serde_saphyr::to_string(entries.first()?).ok()?;
    Some(text.lines().map(str::to_owned).collect())
}

/// Returns the top-level key of a line.
fn top_key(line: &str) -> Option<&str> {
    let starts = line.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '"' || c == '\'');
    let (key, _) = line.split_once(':').filter(|_| starts)?;
    Some(key.trim().trim_matches(['"', '\'']))
}

/// Returns the line of a top-level key, and the first line after its value.
fn section(lines: &[String], key: &str) -> Option<(usize, usize)> {
    let start = lines.iter().position(|line| top_key(line) == Some(key))?;
    let rest = &lines[start + 1..];
    let mut end = start + 1 + rest.iter().position(|l| top_key(l).is_some()).unwrap_or(rest.len());
    // Comments and empty lines before the next key belong to that key.
    while end > start + 1 && (lines[end - 1].trim().is_empty() || lines[end - 1].starts_with('#')) {
        end -= 1;
    }
    Some((start, end))
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Returns first line and end of each entry of a list.
fn entries(lines: &[String], (start, end): (usize, usize)) -> Vec<(usize, usize)> {
    let is_item = |line: &String| line.trim_start().starts_with("- ");
    let Some(first) = (start + 1..end).find(|i| is_item(&lines[*i])) else { return Vec::new() };
    let depth = indent(&lines[first]);
    let starts: Vec<usize> =
        (first..end).filter(|i| is_item(&lines[*i]) && indent(&lines[*i]) == depth).collect();
    let ends = starts.iter().skip(1).copied().chain([end]);
    let mut found: Vec<(usize, usize)> = starts.iter().copied().zip(ends).collect();
    for (from, to) in &mut found {
        // Comments before the next entry belong to that one.
        while *to > *from + 1 && lines[*to - 1].trim_start().starts_with('#') {
            *to -= 1;
        }
    }
    found
}

/// Returns the name of an entry: the key `name` at the entry's own indentation.
fn name_of(lines: &[String]) -> Option<&str> {
    let depth = indent(lines.first()?) + 2;
    lines.iter().enumerate().find_map(|(i, line)| {
        let at_depth = if i == 0 { line.trim_start().strip_prefix("- ")? } else { line.get(depth..)? };
        let is_own = i == 0 || indent(line) == depth;
        let value = at_depth.strip_prefix("name:").filter(|_| is_own)?;
        let value = value.split(" #").next().unwrap_or_default().trim();
        Some(value.trim_matches(['"', '\'']))
    })
}

/// Removes the entry `name` from a list.
fn take_entry(lines: &mut Vec<String>, list: &str, name: &str) {
    let Some(place) = section(lines, list) else { return };
    let found =
        entries(lines, place).into_iter().find(|(from, to)| name_of(&lines[*from..*to]) == Some(name));
    if let Some((from, to)) = found {
        lines.drain(from..to);
        // An empty list must be written as `[]`.
        if section(lines, list).is_some_and(|place| entries(lines, place).is_empty())
            && let Some(line) = lines.get_mut(place.0).filter(|line| line.trim_end().ends_with(':'))
        {
            line.push_str(" []");
        }
    }
}

/// Appends an entry to a list; creates the list if it is missing.
fn add_entry(lines: &mut Vec<String>, list: &str, entry: &[String]) {
    let (start, end) = section(lines, list).unwrap_or_else(|| {
        lines.push(format!("{list}:"));
        (lines.len() - 1, lines.len())
    });
    let value = lines[start].split_once(':').map_or("", |(_, value)| value.trim());
    if ["[]", "null", "~"].contains(&value) {
        lines[start] = format!("{list}:");
    }
    let depth = entries(lines, (start, end)).first().map_or(0, |(first, _)| indent(&lines[*first]));
    let text = entry.iter().enumerate().map(|(i, line)| {
        let mark = if i == 0 { "- " } else { "  " };
        format!("{:depth$}{mark}{line}", "")
    });
    let text: Vec<String> = text.collect();
    lines.splice(end..end, text);
}

/// Sets a top-level key to a string.
fn set_scalar(lines: &mut Vec<String>, key: &str, value: &str) {
    let is_plain =
        !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_./@".contains(c));
    let plain_word = is_plain
        && value.starts_with(|c: char| c.is_ascii_alphabetic())
        && !["null", "true", "false"].contains(&value);
    let shown = if plain_word { value.to_owned() } else { serde_json::Value::from(value).to_string() };
    match lines.iter().position(|line| top_key(line) == Some(key)) {
        Some(at) => {
            let old = lines[at]
                .split_once(':')
                .map_or("", |(_, v)| v)
                .split(" #")
                .next()
                .unwrap_or_default()
                .trim();
            if old.trim_matches(['"', '\'']) != value {
                lines[at] = format!("{key}: {shown}");
            }
        }
        None => lines.push(format!("{key}: {shown}")),
    }
}
