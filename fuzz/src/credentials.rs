//! Credentials and the files that say which are valid.

use std::sync::LazyLock;

use k8s_apiserver::auth::{
    AuthenticationConfiguration, Authenticator, Passwords, PublicKey,
    tokens::{Lookup, TokenIssuer, TokenSubject},
};

use crate::Target;

static ISSUER: LazyLock<TokenIssuer> =
    LazyLock::new(|| TokenIssuer::new(None).expect("the system has randomness"));

/// Every object exists, and every Secret holds every token.
struct All;

impl Lookup for All {
    fn is_alive(&self, _: &str, _: &str, _: &str) -> bool {
        true
    }
    fn holds_token(&self, _: &str, _: &str) -> bool {
        true
    }
}

pub(crate) const TOKEN: Target = Target {
    name: "bearer_token",
    seeds: &[
        b"eyJhbGciOiJFUzI1NiIsImtpZCI6ImEifQ.eyJpc3MiOiJrdWJlcm5ldGVzL3NlcnZpY2VhY2NvdW50In0.AAAA",
        b"eyJhbGciOiJub25lIn0.e30.",
        b"..",
    ],
    run: |data| {
        let text = String::from_utf8_lossy(data);
        let audiences = ISSUER.api_audiences();
        // Nothing but a token of the issuer's key is valid, whatever objects there are.
        assert!(ISSUER.verify(&text, audiences, 0, &All).is_err());
        let subject = TokenSubject {
            namespace: "n".into(),
            name: "a".into(),
            uid: "u".into(),
            ..TokenSubject::default()
        };
        let token = ISSUER.issue_legacy(&subject, "s").expect("the system has randomness");
        assert!(ISSUER.verify(&token, audiences, 0, &All).is_ok());
        // No byte of it can be another, but those that mean the same bits of the signature.
        let signed = token.rfind('.').unwrap_or_default();
        let mut changed = token.clone().into_bytes();
        if let (Some(at), Some(byte)) = (data.first(), data.get(1)) {
            let at = usize::from(*at) % signed;
            if changed[at] != *byte {
                changed[at] = *byte;
                assert!(ISSUER.verify(&String::from_utf8_lossy(&changed), audiences, 0, &All).is_err());
            }
        }
    },
};

pub(crate) const KEYS: Target = Target {
    name: "public_keys",
    seeds: &[
        include_bytes!("../../k8s-core/apiserver/tests/data/rsa-2048.pub"),
        include_bytes!("../../k8s-core/apiserver/tests/data/rsa-2048.crt"),
        include_bytes!("../../k8s-core/apiserver/tests/data/p384-sec1.pem"),
    ],
    run: |data| {
        if let Ok(keys) = PublicKey::parse_pem(&String::from_utf8_lossy(data)) {
            assert!(!keys.is_empty());
        }
        let _ = TokenIssuer::new(Some(data));
    },
};

pub(crate) const USERS: Target = Target {
    name: "user_files",
    seeds: &[b"s3cret,eve,42,\"shop,admins\"\n", b"\"a,\"\"b\",bob,7\n# x\n\n", b"a,\"b,c"],
    run: |data| {
        let text = String::from_utf8_lossy(data);
        let (tokens, passwords) = (Authenticator::parse_token_file(&text), Passwords::parse(&text));
        assert_eq!(tokens.is_ok(), passwords.is_ok());
    },
};

pub(crate) const CONFIGURATION: Target = Target {
    name: "authentication_configuration",
    seeds: &[
        br#"{"apiVersion":"apiserver.config.k8s.io/v1","kind":"AuthenticationConfiguration","jwt":[{"issuer":{"url":"https://a","audiences":["b"]},"claimMappings":{"username":{"expression":"claims.sub"},"extra":[{"key":"a.b/c","valueExpression":"claims.d"}]},"userValidationRules":[{"expression":"user.username != ''"}]}],"anonymous":{"enabled":true,"conditions":[{"path":"/livez"}]}}"#,
        b"apiVersion: apiserver.config.k8s.io/v1beta1\nkind: AuthenticationConfiguration\njwt: []\n",
    ],
    run: |data| {
        if let Err(error) = AuthenticationConfiguration::parse(&String::from_utf8_lossy(data), &[]) {
            assert!(!error.problems.is_empty());
        }
    },
};
