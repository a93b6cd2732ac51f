//! Reads CustomResourceDefinitions from files and texts.

use std::{fs, io, path::Path};

use serde_json::Value;

use crate::error::EnvironmentError;

/// Returns the definitions of files and directories, then those given as JSON. Other objects of files are
/// passed over, as by Go's envtest.
pub(crate) fn definitions(paths: &[String], crds: &[String]) -> Result<Vec<Value>, EnvironmentError> {
    let mut all = Vec::new();
    for path in paths {
        let missing = |source| EnvironmentError::NoSuchFileOrDirectory { path: path.clone(), source };
        for (file, text) in texts(Path::new(path)).map_err(missing)? {
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
                .map_err(|e| EnvironmentError::DecodeCrd(format!("{file}: not YAML: {e}")))?;
            all.extend(documents.into_iter().filter(is_definition));
        }
    }
    for text in crds {
        let one: Value = serde_json::from_str(text)?;
        if !is_definition(&one) {
            let found = format!("{} {}", one["apiVersion"], one["kind"]);
            return Err(EnvironmentError::DecodeCrd(format!("not a CustomResourceDefinition: {found}")));
        }
        all.push(one);
    }
    Ok(all)
}

fn is_definition(object: &Value) -> bool {
    let group = object["apiVersion"].as_str().and_then(|version| version.split('/').next());
    group == Some("apiextensions.k8s.io") && object["kind"] == "CustomResourceDefinition"
}

/// Returns names and texts of a file, or of a directory's files in the order of their names.
fn texts(path: &Path) -> io::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            let file = entry?.path();
            let wanted = file.extension().and_then(|e| e.to_str());
            if wanted.is_some_and(|e| matches!(e, "yaml" | "yml" | "json")) && file.is_file() {
                files.push(file);
            }
        }
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    files.into_iter().map(|file| Ok((file.display().to_string(), fs::read_to_string(&file)?))).collect()
}
