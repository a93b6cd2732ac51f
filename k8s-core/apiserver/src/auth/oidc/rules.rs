//! Rules from claims to users.

use std::{collections::BTreeMap, sync::LazyLock};

use k8s_cel::{Activation, Decl, Env, Meter, ObjectType, Program, RUNTIME_BUDGET, Type};
use regex::Regex;
use serde_json::{Value, json};

use crate::user::User;

/// Claims that an expression selects: `claims.email`, `claims.?email`, `claims["email"]`.
static SELECTED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"\bclaims(?:\.\??|\[\??["'])(\w+)"#).expect("a constant pattern that the tests compile")
});

/// Environment of expressions over claims.
static OF_CLAIMS: LazyLock<Env> =
    LazyLock::new(|| Env::new().variable("claims", Decl::new(Type::map(Type::Dyn))));

/// Environment of expressions over the user.
static OF_USER: LazyLock<Env> = LazyLock::new(|| {
    let groups = Type::list(Type::String);
    let fields = [
        ("username", Type::String),
        ("uid", Type::String),
        ("groups", groups.clone()),
        ("extra", Type::map(groups)),
    ];
    let fields = fields.map(|(name, ty)| (name.to_owned(), Decl::new(ty).into()));
    Env::new().variable("user", Decl::object(ObjectType::new("kubernetes.UserInfo", fields)))
});

/// A compiled expression.
#[derive(Debug)]
pub(in crate::auth) struct Expression {
    text: String,
    program: Program,
    of_user: bool,
}

impl Expression {
    /// Compiles an expression over the claims, or over the user.
    pub(in crate::auth) fn compile(text: &str, of_user: bool, is_condition: bool) -> Result<Self, String> {
        let env = if of_user { &OF_USER } else { &OF_CLAIMS };
        let program = env.compile(text).map_err(|e| format!("compilation failed: {e}"))?;
        if is_condition && !matches!(program.result_type(), Type::Bool) {
            return Err("must evaluate to bool".into());
        }
        Ok(Expression { text: text.to_owned(), program, of_user })
    }

    pub(in crate::auth) fn text(&self) -> &str {
        &self.text
    }

    /// True if the expression selects a claim by its name.
    pub(in crate::auth) fn reads_claim(&self, name: &str) -> bool {
        SELECTED.captures_iter(&self.text).any(|selected| &selected[1] == name)
    }

    fn evaluate(&self, of: &Value, meter: &mut Meter) -> Result<Value, String> {
        let variable = if self.of_user { "user" } else { "claims" };
        let values = Activation::new().json(variable, of);
        let value = self.program.evaluate(&values, meter).map_err(|e| e.to_string())?;
        match value.type_name() {
            "string" | "bool" | "list" | "null_type" => {
                value.to_json().ok_or_else(|| "the value has no form in JSON".to_owned())
            }
            // No caller takes an object.
            other => Ok(json!({"type": other})),
        }
    }
}

/// Source of an attribute of the user.
#[derive(Debug)]
pub(in crate::auth) enum Mapping {
    /// A claim, and a prefix of its values.
    Claim { claim: String, prefix: String },
    /// An expression over the claims.
    Expression(Expression),
}

/// A condition of tokens.
#[derive(Debug)]
pub(in crate::auth) enum ClaimRule {
    /// The claim must have this value.
    Required { claim: String, value: String },
    /// The expression must be true; else the token is refused with the message.
    Condition { expression: Expression, message: String },
}

/// The rules of an issuer.
#[derive(Debug)]
pub(in crate::auth) struct Rules {
    pub(in crate::auth) username: Mapping,
    pub(in crate::auth) groups: Option<Mapping>,
    pub(in crate::auth) uid: Option<Mapping>,
    /// Keys of extra attributes with their values.
    pub(in crate::auth) extra: Vec<(String, Expression)>,
    pub(in crate::auth) claims: Vec<ClaimRule>,
    /// Conditions of users with messages.
    pub(in crate::auth) users: Vec<(Expression, String)>,
}

impl Rules {
    /// Returns the user of verified claims.
    ///
    /// # Errors
    /// A missing claim, a rule that is not met, or an expression's error.
    pub(in crate::auth) fn user(&self, claims: &Value) -> Result<User, String> {
        let mut meter = Meter::new(RUNTIME_BUDGET);
        let name = self.username(claims, &mut meter)?;
        if name.is_empty() {
            return Err("the user name is empty".into());
        }
        let groups = match &self.groups {
            None => Vec::new(),
            Some(Mapping::Claim { claim, prefix }) => match claims.get(claim) {
                None => Vec::new(),
                Some(value) => {
                    let groups = texts(value).ok_or_else(|| {
                        format!("parse groups claim {claim:?}: it is neither a string nor a list of strings")
                    })?;
                    groups.into_iter().map(|group| format!("{prefix}{group}")).collect()
                }
            },
            Some(Mapping::Expression(expression)) => values(expression, claims, &mut meter, "group claim")?,
        };
        let mut user = User::new(&name, &groups.iter().map(String::as_str).collect::<Vec<_>>());
        user.uid = self.uid(claims, &mut meter)?;
        user.extra = self.extra(claims, &mut meter)?;
        self.check_claims(claims, &mut meter)?;
        if !self.users.is_empty() {
            let info = json!({"username": user.name, "uid": user.uid, "groups": groups, "extra": user.extra});
            for (expression, message) in &self.users {
                let result = expression.evaluate(&info, &mut meter);
                check(result, expression, message)
                    .map_err(|e| format!("error evaluating user info validation rule: {e}"))?;
            }
        }
        Ok(user)
    }

    fn username(&self, claims: &Value, meter: &mut Meter) -> Result<String, String> {
        match &self.username {
            Mapping::Expression(expression) => match expression.evaluate(claims, meter) {
                Ok(Value::String(name)) => Ok(name),
                Ok(_) => Err(
                    "error evaluating username claim expression: username claim expression must return a string"
                        .into(),
                ),
                Err(e) => Err(format!("error evaluating username claim expression: {e}")),
            },
            Mapping::Claim { claim, prefix } => {
                let name = text(claims, claim).map_err(|e| format!("parse username claims {claim:?}: {e}"))?;
                // A claim that says that the address is not verified, or that says nonsense.
                if claim == "email" && claims.get("email_verified").is_some_and(|v| *v != Value::Bool(true)) {
                    return Err("email not verified".into());
                }
                // A prefix alone is no name.
                Ok(if name.is_empty() { name } else { format!("{prefix}{name}") })
            }
        }
    }

    fn uid(&self, claims: &Value, meter: &mut Meter) -> Result<String, String> {
        match &self.uid {
            None => Ok(String::new()),
            Some(Mapping::Claim { claim, .. }) => {
                text(claims, claim).map_err(|e| format!("parse uid claim {claim:?}: {e}"))
            }
            Some(Mapping::Expression(expression)) => match expression.evaluate(claims, meter) {
                Ok(Value::String(uid)) => Ok(uid),
                Ok(_) => {
                    Err("error evaluating uid claim expression: uid claim expression must return a string"
                        .into())
                }
                Err(e) => Err(format!("error evaluating uid claim expression: {e}")),
            },
        }
    }

    fn extra(&self, claims: &Value, meter: &mut Meter) -> Result<BTreeMap<String, Vec<String>>, String> {
        let mut extra = BTreeMap::new();
        if let Some(id) = claims.get("jti").and_then(Value::as_str).filter(|id| !id.is_empty()) {
            extra.insert("authentication.kubernetes.io/credential-id".into(), vec![format!("JTI={id}")]);
        }
        for (key, expression) in &self.extra {
            let values = values(expression, claims, meter, "extra claim")?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        Ok(extra)
    }

    fn check_claims(&self, claims: &Value, meter: &mut Meter) -> Result<(), String> {
        for rule in &self.claims {
            match rule {
                ClaimRule::Required { claim, value } => match claims.get(claim) {
                    None => return Err(format!("required claim {claim} not present in ID token")),
                    Some(Value::String(found)) if found == value => {}
                    Some(_) => {
                        return Err(format!("required claim {claim} value does not match. want = {value}"));
                    }
                },
                ClaimRule::Condition { expression, message } => {
                    let result = expression.evaluate(claims, meter);
                    check(result, expression, message)
                        .map_err(|e| format!("error evaluating claim validation expression: {e}"))?;
                }
            }
        }
        Ok(())
    }
}

/// Checks the result of a condition.
fn check(result: Result<Value, String>, expression: &Expression, message: &str) -> Result<(), String> {
    match result {
        Ok(Value::Bool(true)) => Ok(()),
        Ok(_) if message.is_empty() => Err(format!("validation expression '{}' failed", expression.text)),
        Ok(_) => Err(format!("validation expression '{}' failed: {message}", expression.text)),
        Err(e) => Err(e),
    }
}

fn text(claims: &Value, claim: &str) -> Result<String, &'static str> {
    match claims.get(claim) {
        None => Err("claim not present"),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err("it is no string"),
    }
}

/// Returns a string or a list of strings. `None` for anything else.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(all) => all.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// Returns the values of an expression. An empty text and null are none.
fn values(
    expression: &Expression,
    claims: &Value,
    meter: &mut Meter,
    of: &str,
) -> Result<Vec<String>, String> {
    let wrong = |e: &str| format!("error evaluating {of} expression: {e}");
    match expression.evaluate(claims, meter) {
        Ok(Value::Null) => Ok(Vec::new()),
        Ok(Value::String(text)) if text.is_empty() => Ok(Vec::new()),
        Ok(value) => {
            texts(&value).ok_or_else(|| wrong("expression must return a string or a list of strings"))
        }
        Err(e) => Err(wrong(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(text: &str) -> Expression {
        Expression::compile(text, false, false).unwrap()
    }

    fn rules() -> Rules {
        Rules {
            username: Mapping::Claim { claim: "sub".into(), prefix: "x:".into() },
            groups: None,
            uid: None,
            extra: Vec::new(),
            claims: Vec::new(),
            users: Vec::new(),
        }
    }

    #[test]
    fn claims_are_mapped_to_users() {
        let mut rules = rules();
        rules.groups = Some(Mapping::Claim { claim: "roles".into(), prefix: "r:".into() });
        let user = rules.user(&json!({"sub": "eve", "roles": "dev", "jti": "7"})).unwrap();
        assert_eq!(
            (user.name.as_str(), user.groups),
            ("x:eve", vec!["r:dev".into(), "system:authenticated".into()])
        );
        assert_eq!(user.extra["authentication.kubernetes.io/credential-id"], ["JTI=7"]);
        let several = rules.user(&json!({"sub": "eve", "roles": ["a", "b"]})).unwrap();
        assert_eq!(several.groups, ["r:a", "r:b", "system:authenticated"]);
        for bad in [json!({}), json!({"sub": 7}), json!({"sub": ""}), json!({"sub": "eve", "roles": [1]})] {
            assert!(rules.user(&bad).is_err(), "{bad}");
        }
        rules.groups = Some(Mapping::Expression(expression(
            "claims.roles.split(',') + (claims.?admin.orValue(false) ? ['admins'] : [])",
        )));
        rules.uid = Some(Mapping::Expression(expression("claims.id")));
        rules.extra = vec![
            ("example.com/tier".into(), expression("claims.tier")),
            ("example.com/none".into(), expression("''")),
        ];
        let user =
            rules.user(&json!({"sub": "eve", "roles": "a,b", "admin": true, "id": "u", "tier": ["x"]}));
        let user = user.unwrap();
        assert_eq!(user.groups, ["a", "b", "admins", "system:authenticated"]);
        assert_eq!(
            (user.uid.as_str(), &user.extra),
            ("u", &BTreeMap::from([("example.com/tier".into(), vec!["x".into()])]))
        );
        // Another type than is wanted, a missing claim.
        for bad in
            [json!({"sub": "eve", "roles": "a", "id": 1, "tier": "x"}), json!({"sub": "eve", "roles": "a"})]
        {
            assert!(rules.user(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unverified_address_is_no_name() {
        let mut rules = rules();
        rules.username = Mapping::Claim { claim: "email".into(), prefix: String::new() };
        let with = |verified: Value| rules.user(&json!({"email": "a@b", "email_verified": verified}));
        assert!(with(true.into()).is_ok() && rules.user(&json!({"email": "a@b"})).is_ok());
        assert!(with(false.into()).is_err() && with("true".into()).is_err());
    }

    #[test]
    fn rules_refuse_tokens_and_users() {
        let mut rules = rules();
        let condition = |text: &str| Expression::compile(text, false, true).unwrap();
        rules.claims = vec![
            ClaimRule::Required { claim: "hd".into(), value: "shop".into() },
            ClaimRule::Condition {
                expression: condition("claims.exp - claims.nbf <= 86400"),
                message: "too long".into(),
            },
        ];
        let users = Expression::compile("!user.username.startsWith('x:system:')", true, true).unwrap();
        rules.users = vec![(users, "reserved".into())];
        let claims = |hd: &str, exp: i64, sub: &str| json!({"sub": sub, "hd": hd, "nbf": 0, "exp": exp});
        assert!(rules.user(&claims("shop", 100, "eve")).is_ok());
        let why = |hd: &str, exp: i64, sub: &str| rules.user(&claims(hd, exp, sub)).unwrap_err();
        assert!(why("else", 100, "eve").contains("required claim hd"));
        assert!(why("shop", 100_000, "eve").ends_with("failed: too long"));
        assert!(why("shop", 100, "system:admin").ends_with("failed: reserved"));
    }

    #[test]
    fn expressions_that_loop_end() {
        let mut rules = rules();
        rules.groups = Some(Mapping::Expression(expression(
            "claims.l.map(a, claims.l.map(b, claims.l.map(c, string(a))))[0][0]",
        )));
        let list: Vec<i64> = (0..2000).collect();
        let error = rules.user(&json!({"sub": "eve", "l": list})).unwrap_err();
        assert!(error.contains("cost") || error.contains("limit"), "{error}");
    }

    #[test]
    fn selected_claims_are_seen() {
        for text in
            ["claims.email", "claims.?email.orValue('')", "claims['email']", "claims[?\"email\"].orValue('')"]
        {
            assert!(expression(text).reads_claim("email"), "{text}");
        }
        assert!(!expression("claims.email_verified ? 'a' : 'b'").reads_claim("email"));
    }
}
