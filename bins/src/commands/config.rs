//! Sources of a command's settings: flag > environment > `--config` file > default.
//!
//! A setting is one field with `#[arg(long)]` of a command's struct. From it follow its variable
//! (`NAME_FLAG_NAME`), its key in the file (`flag-name`), and its line in the output of `--print-config`,
//! which `--config` reads back. Values of the file go through the same parsers as flags. A variable that
//! Kubernetes sets for a Service of the program's name is no setting. Not here: the settings.

mod upstream;

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value};

use super::exit::{Code, Failure};

/// The `--config` and `--print-config` flags.
#[derive(Debug, clap::Args)]
pub(super) struct ConfigFile {
    /// Configuration file (YAML). Its keys are flag names without the dashes; a list is a repeated flag.
    /// Flags and variables take precedence. Components also read upstream's kinds, such as
    /// KubeletConfiguration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the effective settings as YAML, as `--config` reads them, and exit.
    #[arg(long)]
    print_config: bool,
}

/// Flags that are not settings.
const NO_SETTINGS: [&str; 5] = ["config", "print_config", "help", "version", "log"];

/// The name in texts that a distribution replaces with its own.
const HYPERKUBE: &str = "hyperkube";

/// The default directories that a distribution replaces with its own.
const DATA_DIR: &str = "/var/lib/hyperkube";

/// Keeps a text until the end of the program: clap borrows its texts, and a program parses once.
fn keep(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// Gives a command line the name of its distribution: in texts, default directories and variables.
pub(super) fn named(command: Command, name: &'static str) -> Command {
    let variables = name.to_uppercase().replace('-', "_");
    renamed(command.name(name).bin_name(name), name, &variables)
}

fn renamed(mut command: Command, name: &'static str, variables: &str) -> Command {
    let has_config = command.get_arguments().any(|arg| arg.get_id() == "config");
    if let Some(about) = command.get_about().map(ToString::to_string) {
        command = command.about(about.replace(HYPERKUBE, name));
    }
    command = command.mut_args(|mut arg| {
        if let Some(help) = arg.get_help().map(ToString::to_string) {
            arg = arg.help(help.replace(HYPERKUBE, name));
        }
        let default = arg.get_default_values().first().and_then(|d| d.to_str()).unwrap_or_default();
        let is_data_dir = default == DATA_DIR;
        if is_data_dir {
            arg = arg.default_value(keep(format!("/var/lib/{name}")));
        }
        let id = arg.get_id().as_str().to_owned();
        let is_setting = has_config && is_setting(&arg);
        // Not the demo's `--data-dir`: the demo removes its directory, which must never be a cluster's.
        if (is_setting || is_data_dir || id == "log") && arg.get_env().is_none() {
            let variable = format!("{variables}_{}", id.to_uppercase());
            if !is_service_link(&variable, |name| std::env::var_os(name)) {
                arg = arg.env(keep(variable));
            }
        }
        if is_setting && matches!(arg.get_action(), ArgAction::SetTrue) {
            // So that a flag can turn off what the file turns on.
            arg = arg
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .default_value("false")
                .hide_default_value(true)
                .hide_possible_values(true);
        }
        arg
    });
    command.mut_subcommands(|sub| renamed(sub, name, variables))
}

/// Returns true if a pod has the variable for a Service, and not as a setting. For a Service `NAME`,
/// Kubernetes sets `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT` and `NAME_PORT=tcp://ADDRESS:PORT` in each pod of
/// the Service's namespace. Every setting is safe from the others (`NAME_PORT_80_TCP`): none has such a name.
fn is_service_link(variable: &str, value_of: impl Fn(&str) -> Option<OsString>) -> bool {
    const SCHEMES: [&str; 3] = ["tcp://", "udp://", "sctp://"];
    let Some(value) = value_of(variable) else { return false };
    let value = value.to_string_lossy();
    let is_port = variable.ends_with("_PORT");
    // A distribution `my-service` has the variables of a Service `my`.
    let service = variable.strip_suffix("_SERVICE_PORT");
    is_port && SCHEMES.iter().any(|scheme| value.starts_with(scheme))
        || service.is_some_and(|name| value_of(&format!("{name}_SERVICE_HOST")).is_some())
}

fn is_setting(arg: &Arg) -> bool {
    arg.get_long().is_some() && !NO_SETTINGS.contains(&arg.get_id().as_str())
}

/// Parses a command line, its `--config` file included.
///
/// # Errors
/// clap's error, or a message about the file.
pub(super) fn parse(command: Command, args: &[OsString]) -> Result<ArgMatches, Refused> {
    let peeked = command.clone().ignore_errors(true).try_get_matches_from(args).ok();
    let file = peeked.as_ref().and_then(|m| m.subcommand()).and_then(|(sub, m)| {
        let file = m.try_get_one::<PathBuf>("config").ok().flatten()?;
        Some((sub.to_owned(), file.clone()))
    });
    let Some((sub, file)) = file else { return Ok(command.try_get_matches_from(args)?) };
    let mut problem = None;
    let command = command.mut_subcommand(&sub, |sub| match with_file(sub.clone(), &file) {
        Ok(changed) => changed,
        Err(e) => {
            problem = Some(e);
            sub
        }
    });
    match problem {
        Some(message) => Err(Refused::File(Failure::new(Code::Usage, message))),
        None => Ok(command.try_get_matches_from(args)?),
    }
}

/// A command line that cannot be used.
pub(super) enum Refused {
    Line(clap::Error),
    File(Failure),
}

impl From<clap::Error> for Refused {
    fn from(e: clap::Error) -> Self {
        Refused::Line(e)
    }
}

/// Makes the values of a file the defaults of a command's arguments.
fn with_file(command: Command, file: &Path) -> Result<Command, String> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| format!("--config {shown}: {e}"))?;
    let entries = entries(&text, command.get_name(), file).map_err(|e| format!("--config {shown}: {e}"))?;
    let mut with = command.clone();
    for (key, values) in entries {
        let found = command.get_arguments().find(|arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            is_setting(arg) && (arg.get_long() == Some(&key) || aliases.contains(&&*key))
        });
        let Some(arg) = found else {
            return Err(format!(
                "--config {shown}: unknown key {key:?}; the keys are the flags of {}",
                command.get_name()
            ));
        };
        let many = matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some();
        if !many && values.len() != 1 {
            return Err(format!("--config {shown}: {key}: one value is needed, not a list"));
        }
        // The flag's own parser judges the values.
        let long = arg.get_long().unwrap_or_default();
        let line = std::iter::once("x".to_owned()).chain(values.iter().map(|v| format!("--{long}={v}")));
        let alone = command.clone().mut_args(|arg| arg.required(false).env(None::<&'static str>));
        if let Err(e) = alone.try_get_matches_from(line) {
            let text = e.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            return Err(format!("--config {shown}: {key}: {first}"));
        }
        let id = arg.get_id().clone();
        let values: Vec<&'static str> = values.into_iter().map(keep).collect();
        with = with.mut_arg(id, |arg| arg.required(false).default_values(values));
    }
    Ok(with)
}

/// The entries of a configuration file: flag names and their values.
fn entries(text: &str, command: &str, file: &Path) -> Result<Vec<(String, Vec<String>)>, String> {
    let value: Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let map = match value {
        Value::Null => Map::new(),
        Value::Object(map) => map,
        _ => return Err("a mapping of flag names to values is needed".to_owned()),
    };
    if map.contains_key("kind") {
        return upstream::entries(text, command, file);
    }
    map.into_iter()
        .map(|(key, value)| {
            let values = match value {
                Value::Array(items) => {
                    items.iter().map(|item| scalar(&key, item)).collect::<Result<_, _>>()?
                }
                value => vec![scalar(&key, &value)?],
            };
            Ok((key, values))
        })
        .collect()
}

fn scalar(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        _ => Err(format!("{key}: text, a number, true or false is needed")),
    }
}

/// Returns the effective settings of the parsed subcommand as YAML if `--print-config` asks for them.
pub(super) fn to_print(command: &Command, matches: &ArgMatches) -> Option<String> {
    let (name, matches) = matches.subcommand()?;
    if !*matches.try_get_one::<bool>("print_config").ok().flatten()? {
        return None;
    }
    let mut map = Map::new();
    for arg in command.find_subcommand(name)?.get_arguments().filter(|arg| is_setting(arg)) {
        let id = arg.get_id().as_str();
        let Some(values) = matches.get_raw(id).filter(|_| matches.value_source(id).is_some()) else {
            continue;
        };
        let mut values: Vec<Value> = values.map(typed).collect();
        let many = matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some();
        let value = if many { Value::Array(values) } else { values.pop()? };
        map.insert(arg.get_long().unwrap_or(id).to_owned(), value);
    }
    serde_saphyr::to_string(&Value::Object(map)).ok()
}

/// A value as YAML shows it best. It is read back as the same text.
fn typed(value: &OsStr) -> Value {
    let text = value.to_string_lossy();
    match text.parse::<u64>() {
        Ok(number) if number.to_string() == text => number.into(),
        _ if text == "true" || text == "false" => Value::Bool(text == "true"),
        _ => Value::String(text.into_owned()),
    }
}

#[cfg(test)]
mod tests;
