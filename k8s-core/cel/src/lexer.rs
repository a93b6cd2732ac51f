//! Lexer.

use super::error::CompileError;

/// Maximum length of an expression in characters, as in upstream's parser.
pub(super) const MAX_TEXT: usize = 100_000;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'t> {
    Ident(&'t str),
    /// Decimal or hexadecimal digits, without sign.
    Int(&'t str),
    Uint(&'t str),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
    Sign(&'static str),
    End,
}

/// A token with its position.
#[derive(Clone, Debug)]
pub(super) struct Spanned<'t> {
    pub(super) token: Token<'t>,
    pub(super) at: usize,
    pub(super) text: &'t str,
}

/// Sorted so that longer operators match first.
const SIGNS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":", "+", "*",
    "/", "%", "<", ">",
];

/// Splits a text into tokens.
///
/// # Errors
/// All invalid tokens.
pub(super) fn tokens(text: &str) -> Result<Vec<Spanned<'_>>, Vec<CompileError>> {
    let mut lexer = Lexer { text, at: 0 };
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    loop {
        lexer.skip_space();
        let start = lexer.at;
        match lexer.next() {
            Ok(token) => {
                let end = token == Token::End;
                let slice = text.get(start..lexer.at).unwrap_or_default();
                out.push(Spanned { token, at: start, text: if end { "<EOF>" } else { slice } });
                if end {
                    break;
                }
            }
            Err(message) => {
                if errors.len() < 20 {
                    errors.push(CompileError::at(text, start, message));
                }
                // Continue after the invalid character.
                if lexer.at == start {
                    lexer.at += lexer.rest().chars().next().map_or(1, char::len_utf8);
                }
            }
        }
    }
    if errors.is_empty() { Ok(out) } else { Err(errors) }
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn take_while(&mut self, test: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c| !test(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n' | '\u{c}'));
            if !self.rest().starts_with("//") {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    fn next(&mut self) -> Result<Token<'t>, String> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        let second = rest.chars().nth(1);
        if first.is_ascii_digit() || (first == '.' && second.is_some_and(|c| c.is_ascii_digit())) {
            return self.number();
        }
        if let Some((prefix, raw, bytes)) = string_prefix(rest) {
            let start = self.at;
            self.at += prefix;
            return self.string(raw, bytes).inspect_err(|_| {
                self.at = self.at.max(start + prefix + 1);
            });
        }
        if first.is_ascii_alphabetic() || first == '_' {
            return Ok(Token::Ident(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_')));
        }
        match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Some(sign) => {
                self.at += sign.len();
                Ok(Token::Sign(sign))
            }
            None => Err(format!("Syntax error: token recognition error at: '{first}'")),
        }
    }

    fn number(&mut self) -> Result<Token<'t>, String> {
        let start = self.at;
        let unsigned = |lexer: &mut Self| {
            let found = lexer.rest().starts_with(['u', 'U']);
            lexer.at += usize::from(found);
            found
        };
        if self.rest().starts_with("0x") || self.rest().starts_with("0X") {
            self.at += 2;
            let digits = self.take_while(|c| c.is_ascii_hexdigit());
            let text = self.text.get(start..self.at).unwrap_or_default();
            if digits.is_empty() {
                return Err(format!("Syntax error: token recognition error at: '{text}'"));
            }
            return Ok(if unsigned(self) { Token::Uint(text) } else { Token::Int(text) });
        }
        self.take_while(|c| c.is_ascii_digit());
        let mut double = false;
        let rest = self.rest();
        if rest.starts_with('.') && rest.get(1..).is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()))
        {
            double = true;
            self.at += 1;
            self.take_while(|c| c.is_ascii_digit());
        }
        let rest = self.rest();
        if rest.starts_with(['e', 'E']) {
            let after = rest.get(1..).unwrap_or_default();
            let digits = after.strip_prefix(['+', '-']).unwrap_or(after);
            if digits.starts_with(|c: char| c.is_ascii_digit()) {
                double = true;
                self.at += rest.len() - digits.len();
                self.take_while(|c| c.is_ascii_digit());
            }
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        if double {
            return match text.parse::<f64>() {
                Ok(n) if n.is_finite() => Ok(Token::Double(n)),
                _ => Err("invalid double literal".into()),
            };
        }
        Ok(if unsigned(self) { Token::Uint(text) } else { Token::Int(text) })
    }

    /// Lexes a string or bytes literal, from its opening quote.
    fn string(&mut self, raw: bool, bytes: bool) -> Result<Token<'t>, String> {
        let rest = self.rest();
        let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|q| rest.starts_with(q)).unwrap_or("'");
        let body = rest.get(quote.len()..).unwrap_or_default();
        let mut end = 0;
        let found = loop {
            let here = body.get(end..).unwrap_or_default();
            let Some(c) = here.chars().next() else { break false };
            if here.starts_with(quote) {
                break true;
            }
            if quote.len() == 1 && matches!(c, '\n' | '\r') {
                break false;
            }
            end += c.len_utf8();
            if c == '\\' && !raw {
                end += body.get(end..).and_then(|r| r.chars().next()).map_or(0, char::len_utf8);
            }
        };
        let content = body.get(..end).unwrap_or_default();
        if !found {
            let shown: String = rest.chars().take(40).collect();
            self.at += quote.len() + end;
            return Err(format!("Syntax error: token recognition error at: '{shown}'"));
        }
        self.at += quote.len() * 2 + end;
        if bytes {
            let bytes = if raw { content.as_bytes().to_vec() } else { unescape_bytes(content)? };
            return Ok(Token::Bytes(bytes));
        }
        Ok(Token::String(if raw { content.to_owned() } else { unescape_text(content)? }))
    }
}

/// Returns the length of a string literal's prefix, and whether it is raw and bytes. `None`: not a string
/// literal.
fn string_prefix(rest: &str) -> Option<(usize, bool, bool)> {
    let (mut raw, mut bytes) = (false, false);
    for (i, c) in rest.chars().take(3).enumerate() {
        match c {
            '\'' | '"' => return Some((i, raw, bytes)),
            'r' | 'R' if !raw => raw = true,
            'b' | 'B' if !bytes => bytes = true,
            _ => return None,
        }
    }
    None
}

enum Escaped {
    Char(char),
    /// Written as `\x` or in octal: a byte in bytes literals, a character in strings.
    Byte(u8),
}

/// Decodes an escape after its backslash; returns the rest.
fn unescape_one(rest: &str) -> Result<(Escaped, &str), String> {
    const BAD: &str = "unable to unescape string";
    let c = rest.chars().next().ok_or("unable to unescape string, found '\\' as last character")?;
    let after = rest.get(c.len_utf8()..).unwrap_or_default();
    let simple = match c {
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        '\\' | '\'' | '"' | '`' | '?' => c,
        'x' | 'X' | 'u' | 'U' => {
            let length = match c {
                'u' => 4,
                'U' => 8,
                _ => 2,
            };
            let digits =
                after.get(..length).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit())).ok_or(BAD)?;
            let code = u32::from_str_radix(digits, 16).map_err(|_| BAD)?;
            let rest = after.get(length..).unwrap_or_default();
            if length == 2 {
                return Ok((Escaped::Byte(u8::try_from(code).map_err(|_| BAD)?), rest));
            }
            return Ok((Escaped::Char(char::from_u32(code).ok_or("invalid unicode code point")?), rest));
        }
        '0'..='3' => {
            let digits =
                rest.get(..3).filter(|d| d.bytes().all(|b| (b'0'..=b'7').contains(&b))).ok_or(BAD)?;
            let byte = u8::from_str_radix(digits, 8).map_err(|_| BAD)?;
            return Ok((Escaped::Byte(byte), rest.get(3..).unwrap_or_default()));
        }
        _ => return Err(format!("{BAD}: \\{c}")),
    };
    Ok((Escaped::Char(simple), after))
}

fn unescape_text(content: &str) -> Result<String, String> {
    let mut out = String::with_capacity(content.len());
    let mut rest = content;
    while let Some(at) = rest.find('\\') {
        out.push_str(rest.get(..at).unwrap_or_default());
        let (escaped, left) = unescape_one(rest.get(at + 1..).unwrap_or_default())?;
        match escaped {
            Escaped::Char(c) => out.push(c),
            Escaped::Byte(b) => out.push(char::from(b)),
        }
        rest = left;
    }
    out.push_str(rest);
    Ok(out)
}

fn unescape_bytes(content: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(content.len());
    let mut rest = content;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(rest.get(..at).unwrap_or_default().as_bytes());
        let inner = rest.get(at + 1..).unwrap_or_default();
        if inner.starts_with(['u', 'U']) {
            return Err("unicode escapes are not allowed in bytes".into());
        }
        let (escaped, left) = unescape_one(inner)?;
        match escaped {
            Escaped::Char(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            Escaped::Byte(b) => out.push(b),
        }
        rest = left;
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        for (text, want) in [
            ("0x1F", Token::Int("0x1F")),
            ("12u", Token::Uint("12u".trim_end_matches('u'))),
            ("1.5e3", Token::Double(1500.0)),
            (".5", Token::Double(0.5)),
            ("1e-2", Token::Double(0.01)),
            (r"'a\n\x41\u00e9\101'", Token::String("a\nAéA".into())),
            (r"r'a\n'", Token::String("a\\n".into())),
            ("'''a\n'b'''", Token::String("a\n'b".into())),
            (r#""""a"b""""#, Token::String("a\"b".into())),
            (r"b'\xff\101é'", Token::Bytes(vec![0xff, b'A', 0xc3, 0xa9])),
            (r"bR'\x'", Token::Bytes(b"\\x".to_vec())),
            ("br", Token::Ident("br")),
        ] {
            let found = tokens(text).unwrap();
            assert_eq!(found[0].token, want, "{text}");
            assert_eq!(found.len(), 2, "{text}");
        }
    }

    #[test]
    fn what_is_no_token() {
        for text in
            ["#", "'a", "'a\n'", r"'\q'", r"'\x4'", r"b'\u0041'", r"'\ud800'", "0x", "1e999", "'''a''", "é"]
        {
            assert!(tokens(text).is_err(), "{text}");
        }
        assert_eq!(tokens("a # b #").unwrap_err().len(), 2);
    }
}
