//! The parser of templates.

use serde_json::Value;

use super::{Base, Command, Node, Operand, Pipeline, functions};

/// Deepest nesting of blocks and parentheses.
const DEEPEST: usize = 32;

/// A piece of a template: text, or the inside of `{{ }}` with its line.
enum Piece<'a> {
    Text(&'a str),
    Action(&'a str, usize),
}

/// Splits at `{{` and `}}`, and trims as `{{-` and `-}}` say.
fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let begins = &text[..text.len() - text.trim_start().len()];
    let mut line = 1 + begins.matches('\n').count();
    let (mut all, mut rest, mut trims) = (Vec::new(), text.trim(), false);
    loop {
        let start = rest.find("{{");
        let mut before = start.map_or(rest, |start| &rest[..start]);
        let lines = before.matches('\n').count();
        if trims {
            before = before.trim_start();
        }
        let Some(start) = start else {
            all.push(Piece::Text(before));
            return Ok(all);
        };
        line += lines;
        let inside = &rest[start + 2..];
        let length = end(inside).ok_or_else(|| format!("line {line}: no `}}}}`"))?;
        let mut action = &inside[..length];
        if let Some(trimmed) = action.strip_prefix('-').filter(|a| a.starts_with(char::is_whitespace)) {
            before = before.trim_end();
            action = trimmed;
        }
        let trimmed = action.strip_suffix('-').filter(|a| a.ends_with(char::is_whitespace));
        trims = trimmed.is_some();
        action = trimmed.unwrap_or(action);
        all.push(Piece::Text(before));
        all.push(Piece::Action(action.trim(), line));
        line += inside[..length].matches('\n').count();
        rest = &inside[length + 2..];
    }
}

/// Returns the place of the `}}` that is not inside a string.
fn end(inside: &str) -> Option<usize> {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in inside.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if inside[at..].starts_with("}}") => return Some(at),
            None => {}
        }
    }
    None
}

pub(super) fn template(text: &str) -> Result<Vec<Node>, String> {
    let mut parser = Parser { pieces: pieces(text)?.into_iter(), depth: 0 };
    match parser.block()? {
        (nodes, None) => Ok(nodes),
        (_, Some((word, line))) => Err(format!("line {line}: {word:?} without a beginning")),
    }
}

struct Parser<'a> {
    pieces: std::vec::IntoIter<Piece<'a>>,
    depth: usize,
}

/// The words that ended a block (`end`, `else`, `else if ...`), with their line.
type End<'a> = Option<(&'a str, usize)>;

impl<'a> Parser<'a> {
    fn block(&mut self) -> Result<(Vec<Node>, End<'a>), String> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (action, line) = match piece {
                Piece::Text("") => continue,
                Piece::Text(text) => {
                    nodes.push(Node::Text(text.to_owned()));
                    continue;
                }
                Piece::Action(action, line) => (action, line),
            };
            let word = action.split_whitespace().next().unwrap_or_default();
            match word {
                "end" | "else" => return Ok((nodes, Some((action, line)))),
                _ if action.starts_with("/*") => {}
                "if" | "with" | "range" => nodes.push(self.control(word, &action[word.len()..], line)?),
                "template" | "define" | "block" | "break" | "continue" => {
                    return Err(format!("line {line}: {word:?} is not supported"));
                }
                _ => nodes.push(simple(action, line)?),
            }
        }
        Ok((nodes, None))
    }

    fn control(&mut self, word: &str, rest: &str, line: usize) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("line {line}: nested too deeply"));
        }
        let mut reader = Reader::new(rest, line)?;
        let names = if word == "range" { reader.range_names()? } else { (None, None) };
        let value = reader.whole()?;
        let (body, ended) = self.block()?;
        let otherwise = match ended {
            None => return Err(format!("line {line}: {word:?} without \"end\"")),
            Some(("end", _)) => Vec::new(),
            Some((otherwise, line)) => {
                let rest = otherwise["else".len()..].trim();
                let inner = rest.split_whitespace().next().unwrap_or_default();
                match inner {
                    // `else if` shares the end of the outer `if`.
                    "if" | "with" => vec![self.control(inner, &rest[inner.len()..], line)?],
                    "" => match self.block()? {
                        (nodes, Some(("end", _))) => nodes,
                        _ => return Err(format!("line {line}: \"else\" without \"end\"")),
                    },
                    _ => return Err(format!("line {line}: {otherwise:?} is not supported")),
                }
            }
        };
        self.depth -= 1;
        Ok(match word {
            "if" => Node::If { condition: value, then: body, otherwise },
            "with" => Node::With { value, then: body, otherwise },
            _ => Node::Range { names, values: value, body, otherwise },
        })
    }
}

fn simple(action: &str, line: usize) -> Result<Node, String> {
    let mut reader = Reader::new(action, line)?;
    match reader.assignment() {
        Some((name, declares)) => Ok(Node::Set { name, declares, value: reader.whole()? }),
        None => Ok(Node::Print(reader.whole()?)),
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// `.a.b`; empty: the dot alone.
    Fields(Vec<String>),
    /// `$name.a.b`.
    Variable(String, Vec<String>),
    Literal(Value),
    Word(String),
    Open,
    /// `)` with the fields of the value before it.
    Close(Vec<String>),
    Pipe,
    Comma,
    Declare,
    Assign,
}

struct Reader {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    line: usize,
    depth: usize,
}

impl Reader {
    fn new(text: &str, line: usize) -> Result<Self, String> {
        let tokens = tokens(text).map_err(|e| format!("line {line}: {e}"))?;
        Ok(Reader { tokens: tokens.into_iter().peekable(), line, depth: 0 })
    }

    fn refuse<T>(&self, what: impl std::fmt::Display) -> Result<T, String> {
        Err(format!("line {}: {what}", self.line))
    }

    /// Takes `$name :=` or `$name =`.
    fn assignment(&mut self) -> Option<(String, bool)> {
        let mut ahead = self.tokens.clone();
        let (Some(Token::Variable(name, path)), Some(sign)) = (ahead.next(), ahead.next()) else {
            return None;
        };
        let declares = match sign {
            Token::Declare => true,
            Token::Assign => false,
            _ => return None,
        };
        self.tokens = ahead;
        path.is_empty().then_some((name, declares))
    }

    /// Takes `$item :=` or `$index, $item :=`.
    fn range_names(&mut self) -> Result<(Option<String>, Option<String>), String> {
        if let Some((name, true)) = self.assignment() {
            return Ok((None, Some(name)));
        }
        let mut ahead = self.tokens.clone();
        let (first, comma) = (ahead.next(), ahead.next());
        if let (Some(Token::Variable(index, _)), Some(Token::Comma)) = (first, comma) {
            self.tokens = ahead;
            return match self.assignment() {
                Some((item, true)) => Ok((Some(index), Some(item))),
                _ => self.refuse("no `$item :=` after the comma"),
            };
        }
        Ok((None, None))
    }

    /// Reads a pipeline to the end.
    fn whole(&mut self) -> Result<Pipeline, String> {
        let pipeline = self.pipeline()?;
        match self.tokens.next() {
            None => Ok(pipeline),
            Some(token) => self.refuse(format_args!("{token:?} is not expected")),
        }
    }

    fn pipeline(&mut self) -> Result<Pipeline, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return self.refuse("nested too deeply");
        }
        let mut commands = vec![self.command()?];
        while self.tokens.next_if_eq(&Token::Pipe).is_some() {
            commands.push(self.command()?);
        }
        self.depth -= 1;
        Ok(Pipeline(commands))
    }

    fn command(&mut self) -> Result<Command, String> {
        let Some(first) = self.operand()? else { return self.refuse("a value or function is missing") };
        let mut arguments = Vec::new();
        while let Some(argument) = self.operand()? {
            arguments.push(argument);
        }
        match first {
            Operand { base: Base::Call(function), path } if path.is_empty() => {
                Ok(Command::Call { function, arguments })
            }
            value if arguments.is_empty() => Ok(Command::Value(value)),
            _ => self.refuse("a value is called like a function"),
        }
    }

    fn operand(&mut self) -> Result<Option<Operand>, String> {
        let is_end = matches!(self.tokens.peek(), None | Some(Token::Pipe | Token::Close(_)));
        if is_end {
            return Ok(None);
        }
        let operand = |base, path| Ok(Some(Operand { base, path }));
        match self.tokens.next() {
            Some(Token::Fields(path)) => operand(Base::Dot, path),
            Some(Token::Variable(name, path)) => operand(Base::Variable(name), path),
            Some(Token::Literal(value)) => operand(Base::Literal(value), Vec::new()),
            Some(Token::Word(word)) => match functions::NAMES.iter().find(|name| **name == word) {
                Some(name) => operand(Base::Call(name), Vec::new()),
                None => self.refuse(format_args!("function {word:?} is not supported")),
            },
            Some(Token::Open) => {
                let inner = self.pipeline()?;
                match self.tokens.next() {
                    Some(Token::Close(path)) => operand(Base::Pipeline(inner), path),
                    _ => self.refuse("no `)`"),
                }
            }
            other => self.refuse(format_args!("{other:?} is not expected")),
        }
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Takes a name from the beginning of a text.
fn name(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()))
}

/// Takes `.a.b` from the beginning of a text.
fn fields(mut text: &str) -> (Vec<String>, &str) {
    let mut path = Vec::new();
    while let Some(rest) = text.strip_prefix('.') {
        let (field, after) = name(rest);
        if field.is_empty() {
            break;
        }
        path.push(field.to_owned());
        text = after;
    }
    (path, text)
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let (mut all, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let (token, after) = match first {
            '.' => {
                let (path, after) = fields(rest);
                let after = if path.is_empty() { &rest[1..] } else { after };
                (Token::Fields(path), after)
            }
            '$' => {
                let (variable, after) = name(&rest[1..]);
                let (path, after) = fields(after);
                (Token::Variable(variable.to_owned(), path), after)
            }
            '(' => (Token::Open, &rest[1..]),
            ')' => {
                let (path, after) = fields(&rest[1..]);
                (Token::Close(path), after)
            }
            '|' => (Token::Pipe, &rest[1..]),
            ',' => (Token::Comma, &rest[1..]),
            '=' => (Token::Assign, &rest[1..]),
            ':' if rest.starts_with(":=") => (Token::Declare, &rest[2..]),
            '"' => {
                let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<String>();
                let read = strings.next().and_then(Result::ok);
                let length = strings.byte_offset();
                (Token::Literal(read.ok_or("a string that is not supported")?.into()), &rest[length..])
            }
            '`' => {
                let (raw, after) = rest[1..].split_once('`').ok_or("a string without end")?;
                (Token::Literal(raw.into()), after)
            }
            c if c.is_ascii_digit() || c == '-' => {
                let length =
                    1 + rest[1..].find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len() - 1);
                let number = rest[..length].parse::<serde_json::Number>().map_err(|_| "no number")?;
                (Token::Literal(Value::Number(number)), &rest[length..])
            }
            c if is_name(c) => {
                let (word, after) = name(rest);
                let token = match word {
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    _ => Token::Word(word.to_owned()),
                };
                (token, after)
            }
            other => return Err(format!("{other:?} is not supported")),
        };
        all.push(token);
        rest = after.trim_start();
    }
    Ok(all)
}
