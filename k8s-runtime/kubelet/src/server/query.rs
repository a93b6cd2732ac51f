//! Query parameters of a request.

use k8s_core::client::LongQuery;
use percent_encoding::percent_decode_str;

/// Parameters in their order; a name may be repeated.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of<B>(request: &http::Request<B>) -> Self {
        let decode =
            |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = LongQuery::of(request).split('&').filter(|p| !p.is_empty());
        Query(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// Returns the first value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Returns all values of a parameter.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Returns `true` if a boolean parameter is set under any of its names.
    pub(super) fn flag(&self, names: &[&str]) -> bool {
        names.iter().any(|name| {
            self.get(name).is_some_and(|v| matches!(v, "" | "1" | "t" | "T" | "true" | "TRUE" | "True"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let request =
            http::Request::get("/x?command=a%20b&command=c+d&tty=1&stdin=false&e").body(()).unwrap();
        let query = Query::of(&request);
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["a b", "c d"]);
        assert!(query.flag(&["tty"]) && query.flag(&["e"]) && !query.flag(&["stdin", "input"]));
    }
}
