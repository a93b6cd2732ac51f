//! Recursive descent parser of CEL with limited depth.

mod macros;

use super::{
    ast::{Ast, Expr, Id, Literal, MAX_DEPTH},
    error::{CompileError, CompileErrors},
    lexer::{self, MAX_TEXT, Spanned, Token},
    names::is_reserved,
};

/// Tokens that can begin an expression, as in upstream's messages.
const EXPECTED: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

/// Precedence of `?`, `||` and `&&`; that of binary operators is higher.
const CONDITIONAL: u8 = 0;
const OR: u8 = 1;
const AND: u8 = 2;

/// Binary operators: symbol, precedence, function.
const OPERATORS: [(&str, u8, &str); 11] = [
    ("==", 1, "_==_"),
    ("!=", 1, "_!=_"),
    ("<=", 1, "_<=_"),
    (">=", 1, "_>=_"),
    ("<", 1, "_<_"),
    (">", 1, "_>_"),
    ("+", 2, "_+_"),
    ("-", 2, "_-_"),
    ("*", 3, "_*_"),
    ("/", 3, "_/_"),
    ("%", 3, "_%_"),
];

/// Returns symbol and precedence of an operator's function.
pub(super) fn operator(function: &str) -> Option<(&'static str, u8)> {
    if function == "@in" {
        return Some(("in", 1));
    }
    OPERATORS.iter().find(|(_, _, name)| *name == function).map(|(sign, strength, _)| (*sign, *strength))
}

/// Parses a text into a tree. The error has all lexical errors, or else the first syntax error.
pub(super) fn parse(text: &str) -> Result<Ast, CompileErrors> {
    let length = text.chars().count();
    if length > MAX_TEXT {
        let what = format!("expression code point size exceeds limit: size: {length}, limit {MAX_TEXT}");
        return Err(CompileErrors(vec![CompileError::at("", 0, what)]));
    }
    let tokens = lexer::tokens(text).map_err(CompileErrors)?;
    let mut parser = Parser { text, tokens, at: 0, depth: 0, ast: Ast::default() };
    match parser.whole() {
        Ok(root) => {
            parser.ast.root = root;
            Ok(parser.ast)
        }
        Err(error) => Err(CompileErrors(vec![error])),
    }
}

pub(super) struct Parser<'t> {
    text: &'t str,
    tokens: Vec<Spanned<'t>>,
    at: usize,
    depth: u16,
    pub(super) ast: Ast,
}

type Parsed<T = Id> = Result<T, CompileError>;

fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

impl<'t> Parser<'t> {
    fn peek(&self) -> &Spanned<'t> {
        // The list ends with an end token, which is never consumed.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn advance(&mut self) {
        self.at = (self.at + 1).min(self.tokens.len() - 1);
    }

    pub(super) fn error<T>(&self, at: usize, message: impl Into<String>) -> Parsed<T> {
        Err(CompileError::at(self.text, at, message))
    }

    fn unexpected<T>(&self, expected: &str) -> Parsed<T> {
        let found = self.peek();
        let message = format!("Syntax error: mismatched input '{}' expecting {expected}", found.text);
        self.error(found.at, message)
    }

    /// Consumes an operator if it is next; returns its position.
    fn accept(&mut self, sign: &str) -> Option<usize> {
        let next = self.peek();
        if !matches!(next.token, Token::Sign(s) if s == sign) {
            return None;
        }
        let at = next.at;
        self.advance();
        Some(at)
    }

    fn expect(&mut self, sign: &str) -> Parsed<usize> {
        match self.accept(sign) {
            Some(at) => Ok(at),
            None => self.unexpected(&format!("'{sign}'")),
        }
    }

    pub(super) fn add(&mut self, expr: Expr, at: usize) -> Parsed {
        match self.ast.add(expr, place(at)) {
            Some(id) => Ok(id),
            None => self.error(at, format!("expression recursion limit exceeded: {MAX_DEPTH}")),
        }
    }

    fn whole(&mut self) -> Parsed {
        let root = self.expression()?;
        if self.peek().token == Token::End { Ok(root) } else { self.unexpected("<EOF>") }
    }

    fn expression(&mut self) -> Parsed {
        if self.depth >= MAX_DEPTH {
            return self.too_deep();
        }
        self.depth += 1;
        let result = self.binary(CONDITIONAL);
        self.depth -= 1;
        result
    }

    #[cold]
    fn too_deep(&self) -> Parsed {
        self.error(self.peek().at, format!("expression recursion limit exceeded: {MAX_DEPTH}"))
    }

    /// Returns precedence and function of the next operator.
    fn operator(&self) -> Option<(u8, &'static str)> {
        match self.peek().token {
            Token::Sign("?") => Some((CONDITIONAL, "")),
            Token::Sign("||") => Some((OR, "")),
            Token::Sign("&&") => Some((AND, "")),
            Token::Sign(sign) => {
                OPERATORS.iter().find(|(s, ..)| *s == sign).map(|(_, strength, f)| (AND + strength, *f))
            }
            Token::Ident("in") => Some((AND + 1, "@in")),
            _ => None,
        }
    }

    /// Parses operators of at least this precedence.
    fn binary(&mut self, least: u8) -> Parsed {
        let mut left = self.unary()?;
        while let Some((strength, function)) = self.operator().filter(|(strength, _)| *strength >= least) {
            let at = self.peek().at;
            self.advance();
            left = match strength {
                CONDITIONAL => {
                    let yes = self.binary(OR)?;
                    self.expect(":")?;
                    let no = self.expression()?;
                    self.add(Expr::Conditional(left, yes, no), at)?
                }
                OR | AND => {
                    let terms = self.chain(left, strength)?;
                    self.add(if strength == OR { Expr::Or(terms) } else { Expr::And(terms) }, at)?
                }
                _ => {
                    let right = self.binary(strength + 1)?;
                    self.call(function, None, vec![left, right], at)?
                }
            };
        }
        Ok(left)
    }

    /// Parses the terms of an `&&` or `||` chain after its first operator.
    fn chain(&mut self, first: Id, strength: u8) -> Parsed<Vec<Id>> {
        let mut terms = vec![first, self.binary(strength + 1)?];
        while self.accept(if strength == OR { "||" } else { "&&" }).is_some() {
            terms.push(self.binary(strength + 1)?);
        }
        Ok(terms)
    }

    fn call(&mut self, function: &str, target: Option<Id>, args: Vec<Id>, at: usize) -> Parsed {
        self.add(Expr::Call { function: function.into(), target, args }, at)
    }

    fn unary(&mut self) -> Parsed {
        match self.peek().token {
            Token::Sign("!") => self.signed("!", "!_"),
            Token::Sign("-") => self.signed("-", "-_"),
            _ => {
                let operand = self.primary()?;
                self.member(operand)
            }
        }
    }

    fn signed(&mut self, sign: &str, function: &str) -> Parsed {
        let at = self.peek().at;
        let (mut odd, mut last) = (false, at);
        while let Some(next) = self.accept(sign) {
            odd = !odd;
            last = next;
        }
        if sign == "-" && matches!(self.peek().token, Token::Int(_) | Token::Double(_)) {
            // A minus before a number literal belongs to the literal.
            let operand = self.number(true, last)?;
            let operand = self.member(operand)?;
            return if odd { Ok(operand) } else { self.call(function, None, vec![operand], at) };
        }
        let operand = self.primary()?;
        let operand = self.member(operand)?;
        if odd { self.call(function, None, vec![operand], at) } else { Ok(operand) }
    }

    fn number(&mut self, negative: bool, at: usize) -> Parsed {
        let literal = match self.peek().token {
            Token::Int(text) => {
                let sign = if negative { "-" } else { "" };
                let value = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
                    Some(digits) => i64::from_str_radix(&format!("{sign}{digits}"), 16),
                    None => format!("{sign}{text}").parse(),
                };
                match value {
                    Ok(n) => Literal::Int(n),
                    Err(_) => return self.error(at, "Syntax error: invalid int literal"),
                }
            }
            Token::Uint(text) => {
                let value = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
                    Some(digits) => u64::from_str_radix(digits, 16),
                    None => text.parse(),
                };
                match value {
                    Ok(n) => Literal::Uint(n),
                    Err(_) => return self.error(at, "Syntax error: invalid uint literal"),
                }
            }
            Token::Double(n) => Literal::Double(if negative { -n } else { n }),
            _ => return self.unexpected(EXPECTED),
        };
        self.advance();
        self.add(Expr::Literal(literal), at)
    }

    fn primary(&mut self) -> Parsed {
        let at = self.peek().at;
        match self.peek().token {
            Token::Ident("true") => self.literal(Literal::Bool(true), at),
            Token::Ident("false") => self.literal(Literal::Bool(false), at),
            Token::Ident("null") => self.literal(Literal::Null, at),
            Token::Ident(name) => self.named(name, at, false),
            Token::Sign("(") => {
                self.advance();
                let inner = self.expression()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign(".") => self.rooted(),
            Token::Sign("[") => self.list(at),
            Token::Sign("{") => self.map(at),
            Token::Sign(_) | Token::End => self.unexpected(EXPECTED),
            _ => self.simple(at),
        }
    }

    fn simple(&mut self, at: usize) -> Parsed {
        match self.peek().token.clone() {
            Token::String(text) => self.literal(Literal::String(text), at),
            Token::Bytes(bytes) => self.literal(Literal::Bytes(bytes), at),
            _ => self.number(false, at),
        }
    }

    fn rooted(&mut self) -> Parsed {
        self.advance();
        let Token::Ident(name) = self.peek().token else { return self.unexpected("IDENTIFIER") };
        self.named(name, self.peek().at, true)
    }

    fn list(&mut self, at: usize) -> Parsed {
        self.advance();
        let elements = self.many("]", |parser| {
            let optional = parser.accept("?").is_some();
            Ok((parser.expression()?, optional))
        })?;
        self.add(Expr::List(elements), at)
    }

    fn map(&mut self, at: usize) -> Parsed {
        self.advance();
        let entries = self.many("}", |parser| {
            let optional = parser.accept("?").is_some();
            let key = parser.expression()?;
            parser.expect(":")?;
            Ok((key, parser.expression()?, optional))
        })?;
        self.add(Expr::Map(entries), at)
    }

    fn literal(&mut self, literal: Literal, at: usize) -> Parsed {
        self.advance();
        self.add(Expr::Literal(literal), at)
    }

    /// Parses a comma-separated list up to a closing token; a trailing comma is allowed.
    fn many<T>(&mut self, close: &str, one: impl Fn(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut all = Vec::new();
        loop {
            if self.accept(close).is_some() {
                return Ok(all);
            }
            all.push(one(self)?);
            if self.accept(",").is_none() {
                self.expect(close)?;
                return Ok(all);
            }
        }
    }

    fn args(&mut self) -> Parsed<Vec<Id>> {
        if self.accept(")").is_some() {
            return Ok(Vec::new());
        }
        let mut all = vec![self.expression()?];
        while self.accept(",").is_some() {
            all.push(self.expression()?);
        }
        self.expect(")")?;
        Ok(all)
    }

    fn named(&mut self, name: &str, at: usize, rooted: bool) -> Parsed {
        if is_reserved(name) {
            return if name == "in" {
                self.unexpected(EXPECTED)
            } else {
                self.error(at, format!("reserved identifier: {name}"))
            };
        }
        self.advance();
        let full = if rooted { format!(".{name}") } else { name.to_owned() };
        if let Some(open) = self.accept("(") {
            let args = self.args()?;
            return macros::global(self, &full, args, open);
        }
        let ident = self.add(Expr::Ident(full), at)?;
        self.message(ident)
    }

    /// Parses `Name{field: value}` if a brace follows a qualified name.
    fn message(&mut self, id: Id) -> Parsed {
        let open = self.peek().at;
        if !matches!(self.peek().token, Token::Sign("{")) {
            return Ok(id);
        }
        let Some(name) = self.ast.dotted(id) else { return Ok(id) };
        self.advance();
        let fields = self.many("}", |parser| {
            let optional = parser.accept("?").is_some();
            let Token::Ident(field) = parser.peek().token else { return parser.unexpected("IDENTIFIER") };
            parser.advance();
            parser.expect(":")?;
            Ok((field.to_owned(), parser.expression()?, optional))
        })?;
        self.add(Expr::Struct { name, fields }, open)
    }

    /// Parses suffixes: fields, calls, indexes.
    fn member(&mut self, mut operand: Id) -> Parsed {
        loop {
            if let Some(at) = self.accept(".") {
                let optional = self.accept("?").is_some();
                let Token::Ident(name) = self.peek().token else { return self.unexpected("IDENTIFIER") };
                if matches!(name, "true" | "false" | "null" | "in") {
                    return self.unexpected("IDENTIFIER");
                }
                self.advance();
                let open = if optional { None } else { self.accept("(") };
                operand = match open {
                    Some(open) => {
                        let args = self.args()?;
                        macros::member(self, operand, name, args, open)?
                    }
                    None => {
                        let id = self.add(Expr::Select { operand, field: name.into(), optional }, at)?;
                        self.message(id)?
                    }
                };
            } else if let Some(at) = self.accept("[") {
                let function = if self.accept("?").is_some() { "_[?_]" } else { "_[_]" };
                let index = self.expression()?;
                self.expect("]")?;
                operand = self.call(function, None, vec![operand, index], at)?;
            } else {
                return Ok(operand);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::print::print;

    fn told(text: &str) -> String {
        parse(text).map_or_else(|e| e.0[0].message.clone(), |ast| print(&ast))
    }

    #[test]
    fn precedence_and_chains() {
        for (text, want) in [
            ("1+2*3 - 4", "1 + 2 * 3 - 4"),
            ("(1+2)*3", "(1 + 2) * 3"),
            ("a || b && c || d", "a || b && c || d"),
            ("(a || b) && c", "(a || b) && c"),
            ("a ? b : c ? d : e", "a ? b : c ? d : e"),
            ("(a ? b : c) ? d : e", "(a ? b : c) ? d : e"),
            ("!!a", "a"),
            ("--1", "-(-1)"),
            ("-(1)", "-(1)"),
            ("- 1", "-1"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("a in [1, 2,]", "a in [1, 2]"),
            ("a.b.?c[?0]['x'].d(1, e)", "a.b.?c[?0][\"x\"].d(1, e)"),
            ("has(a.b)", "has(a.b)"),
            (
                "l.all(x, x > 0) && l.map(x, x > 1, x * 2).exists_one(y, y == 1)",
                "l.all(x, x > 0) && l.map(x, x > 1, x * 2).exists_one(y, y == 1)",
            ),
            ("m.transformMap(k, v, k != 'a', v)", "m.transformMap(k, v, k != \"a\", v)"),
            ("cel.bind(x, 1, x + x)", "cel.bind(x, 1, x + x)"),
            ("o.optMap(x, x.a)", "o.optMap(x, x.a)"),
            ("a.b.C{x: 1, ?y: z}", "a.b.C{x: 1, ?y: z}"),
            ("{'a': 1, ?b: c,}", "{\"a\": 1, ?b: c}"),
            ("a // comment\n + b", "a + b"),
            (".a.b", ".a.b"),
        ] {
            assert_eq!(told(text), want, "{text}");
        }
    }

    #[test]
    fn what_is_wrong() {
        for (text, want) in [
            ("", "Syntax error: mismatched input '<EOF>' expecting {"),
            ("a >", "Syntax error: mismatched input '<EOF>' expecting {"),
            ("this does not compile", "Syntax error: mismatched input 'does' expecting <EOF>"),
            ("(a", "Syntax error: mismatched input '<EOF>' expecting ')'"),
            ("if", "reserved identifier: if"),
            ("9223372036854775808", "Syntax error: invalid int literal"),
            ("has(a)", "invalid argument to has() macro"),
            ("l.all(1, true)", "argument must be a simple name"),
            ("a ? b", "Syntax error: mismatched input '<EOF>' expecting ':'"),
        ] {
            assert!(told(text).starts_with(want), "{text}: {}", told(text));
        }
    }

    #[test]
    fn nesting_is_limited() {
        for text in [
            "(".repeat(50_000),
            "[".repeat(50_000),
            "!".repeat(50_000),
            format!("a{}", ".b".repeat(40_000)),
            format!("a{}", "[0]".repeat(30_000)),
            format!("1{}", "+1".repeat(40_000)),
            "a?".repeat(40_000),
            "a?b:".repeat(20_000),
            "f(".repeat(40_000),
            "{1:".repeat(30_000),
            "a.all(x,".repeat(10_000),
        ] {
            assert!(parse(&text).is_err());
        }
        assert!(parse(&format!("a{}", " && a".repeat(19_000))).is_ok(), "chains of and are not deep");
        assert!(parse(&"a".repeat(MAX_TEXT + 1)).is_err());
    }
}
