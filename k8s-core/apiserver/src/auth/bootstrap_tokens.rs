//! Bootstrap tokens: Secrets of kube-system with which a new node introduces itself.

use std::sync::LazyLock;

use regex::Regex;

use super::{
    Evidence,
    constant_time::{hashed, same},
    evidence::SecretData,
};
use crate::user::User;

static TOKEN: LazyLock<Regex> = LazyLock::new(|| pattern(r"\A([a-z0-9]{6})\.([a-z0-9]{16})\z"));
static GROUP: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a constant pattern that the tests compile")
}

/// Returns the user of a bootstrap token, or the reason why it is none.
pub(super) fn user(token: &str, evidence: &Evidence<'_>) -> Result<User, &'static str> {
    let parts = TOKEN.captures(token).ok_or("not of a bootstrap token's form")?;
    let (id, given) = (&parts[1], &parts[2]);
    let name = format!("kube-system/bootstrap-token-{id}");
    let secret = evidence.secret(&name).ok_or("no such secret")?;
    if secret.is_deleted() {
        return Err("the secret is deleted and awaiting removal");
    }
    if secret.kind() != "bootstrap.kubernetes.io/token" {
        return Err("the secret has another type");
    }
    if !same(&hashed(&secret.bytes("token-secret")), &hashed(given.as_bytes())) {
        return Err("another token-secret");
    }
    if secret.text("token-id") != id {
        return Err("another token-id");
    }
    if is_expired(&secret, evidence) {
        return Err("expired");
    }
    if secret.text("usage-bootstrap-authentication") != "true" {
        return Err("not marked usage-bootstrap-authentication=true");
    }
    let groups = groups(&secret.text("auth-extra-groups")).ok_or("invalid auth-extra-groups")?;
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    Ok(User::new(&format!("system:bootstrap:{id}"), &groups))
}

/// True after the expiration, and if the expiration is no time.
fn is_expired(secret: &SecretData, evidence: &Evidence<'_>) -> bool {
    let expiration = secret.text("expiration");
    if expiration.is_empty() {
        return false;
    }
    !expiration.parse::<jiff::Timestamp>().is_ok_and(|end| evidence.clock.now() < end)
}

/// Returns the groups of a token: `system:bootstrappers`, and those of the secret.
fn groups(extra: &str) -> Option<Vec<String>> {
    let mut groups = vec!["system:bootstrappers".to_owned()];
    for group in extra.split(',').filter(|_| !extra.is_empty()) {
        GROUP.is_match(group).then(|| groups.push(group.to_owned()))?;
    }
    groups.sort_unstable();
    groups.dedup();
    Some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_groups_are_bootstrappers_only() {
        assert_eq!(groups("").unwrap(), ["system:bootstrappers"]);
        let some = groups("system:bootstrappers:b,system:bootstrappers:a:x-1").unwrap();
        assert_eq!(some, ["system:bootstrappers", "system:bootstrappers:a:x-1", "system:bootstrappers:b"]);
        for bad in [
            "system:masters",
            "system:bootstrappers:a,",
            "system:bootstrappers:-",
            "a\nsystem:bootstrappers:a",
        ] {
            assert_eq!(groups(bad), None, "{bad}");
        }
        assert!(TOKEN.is_match("abcdef.0123456789abcdef"));
        assert!(!TOKEN.is_match("abcdef.0123456789abcdef\n") && !TOKEN.is_match("abcdeF.0123456789abcdef"));
    }
}
