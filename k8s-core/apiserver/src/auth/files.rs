//! Files of tokens and passwords: lines of `secret,user,uid[,"group1,group2"]`.

use std::collections::HashMap;

use super::constant_time::{Hashed, hashed, same};
use crate::user::User;

/// A line of a token or password file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: want {secret},user,uid and optionally \"group1,group2\"")]
pub struct TokenFileError {
    /// Number of the line, from 1.
    pub line: usize,
    /// Name of the first field: `token` or `password`.
    pub secret: &'static str,
}

/// Reads the lines of a file: secrets and their users. Empty lines and those that begin with `#` are left
/// out.
pub(super) fn lines(text: &str, secret: &'static str) -> Result<Vec<(String, User)>, TokenFileError> {
    let numbered = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'));
    numbered
        .map(|(number, line)| {
            let wrong = TokenFileError { line: number + 1, secret };
            let fields = fields(line).ok_or(wrong.clone())?;
            let [first, name, uid, rest @ ..] = &fields[..] else { return Err(wrong) };
            if first.is_empty() || name.is_empty() {
                return Err(wrong);
            }
            let groups = rest.first().map(String::as_str).unwrap_or_default();
            let groups: Vec<&str> = groups.split(',').map(str::trim).filter(|g| !g.is_empty()).collect();
            let mut user = User::new(name, &groups);
            user.uid = uid.clone();
            Ok((first.clone(), user))
        })
        .collect()
}

/// Splits a line of CSV. A field in quotes may have commas, and quotes that are doubled. `None` for a quote
/// that does not end.
fn fields(line: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start();
        let Some(quoted) = rest.strip_prefix('"') else {
            let end = rest.find(',').unwrap_or(rest.len());
            fields.push(rest[..end].trim().to_owned());
            match rest[end..].strip_prefix(',') {
                Some(more) => rest = more,
                None => return Some(fields),
            }
            continue;
        };
        let (mut field, mut left) = (String::new(), quoted);
        loop {
            let end = left.find('"')?;
            field.push_str(&left[..end]);
            left = &left[end + 1..];
            match left.strip_prefix('"') {
                Some(more) => {
                    field.push('"');
                    left = more;
                }
                None => break,
            }
        }
        fields.push(field);
        left = left.trim();
        if left.is_empty() {
            return Some(fields);
        }
        rest = left.strip_prefix(',')?;
    }
}

/// Users with passwords, for HTTP basic authentication as in Kubernetes until 1.18 (`--basic-auth-file`).
#[derive(Clone, Default)]
pub struct Passwords(HashMap<String, (Hashed, User)>);

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Passwords {{ <{}> }}", self.0.len())
    }
}

impl Passwords {
    /// Parses a password file: lines of `password,user,uid[,"group1,group2"]`.
    ///
    /// ```
    /// use k8s_apiserver::auth::Passwords;
    /// assert!(Passwords::parse("s3cret,eve,42,\"shop,admins\"\n").is_ok());
    /// assert_eq!(Passwords::parse("s3cret,eve").unwrap_err().line, 1);
    /// ```
    ///
    /// # Errors
    /// A line with too few fields.
    pub fn parse(text: &str) -> Result<Self, TokenFileError> {
        let users = lines(text, "password")?.into_iter();
        Ok(Passwords(
            users.map(|(password, user)| (user.name.clone(), (hashed(password.as_bytes()), user))).collect(),
        ))
    }

    /// Returns the user of a name and password.
    pub(super) fn user(&self, name: &str, password: &[u8]) -> Option<User> {
        let given = hashed(password);
        let (wanted, user) = self.0.get(name)?;
        same(&given, wanted).then(|| user.clone())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_line() {
        let of = |line: &str| fields(line).map(|fields| fields.join("|"));
        assert_eq!(of("a, b ,c"), Some("a|b|c".into()));
        assert_eq!(of(r#"a,b,c,"d,e""#), Some("a|b|c|d,e".into()));
        assert_eq!(of(r#""a,""b""",c,"#), Some(r#"a,"b"|c|"#.into()));
        assert_eq!(of(r#"a,"b"#), None);
        assert_eq!(of(r#""a"b,c"#), None);
    }

    #[test]
    fn passwords_may_have_commas() {
        let users = Passwords::parse("\"a,b\",eve,7,\"shop,admins\"\nx,bob,8\n").unwrap();
        let eve = users.user("eve", b"a,b").unwrap();
        assert_eq!(
            (eve.uid.as_str(), eve.groups),
            ("7", vec!["shop".into(), "admins".into(), "system:authenticated".into()])
        );
        assert!(users.user("eve", b"a").is_none() && users.user("bob", b"a,b").is_none());
        assert!(users.user("carol", b"").is_none());
        let wrong = Passwords::parse("a,b,c\n\nx,y\n").unwrap_err();
        assert_eq!(wrong.to_string(), "line 3: want password,user,uid and optionally \"group1,group2\"");
    }
}
