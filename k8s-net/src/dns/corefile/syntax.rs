//! The syntax of Corefiles: lines of words, and blocks in braces.

/// Depth of blocks in blocks.
const DEEPEST: usize = 4;

/// A line with the block behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directive {
    /// Number of the line, from 1.
    pub(super) line: usize,
    /// At least one.
    pub(super) words: Vec<String>,
    pub(super) body: Vec<Directive>,
}

/// A Corefile that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub(super) struct SyntaxError {
    line: usize,
    what: &'static str,
}

/// Splits a line into words. Quotes keep blanks together, and `#` begins a comment.
fn words(text: &str, line: usize) -> Result<Vec<String>, SyntaxError> {
    let mut out = Vec::new();
    let mut letters = text.chars().peekable();
    while let Some(&letter) = letters.peek() {
        if letter.is_whitespace() {
            letters.next();
        } else if letter == '#' {
            break;
        } else if letter == '"' {
            letters.next();
            let mut word = String::new();
            loop {
                match letters.next() {
                    None => return Err(SyntaxError { line, what: "a quote is not closed" }),
                    Some('"') => break,
                    Some('\\') => match letters.next() {
                        Some(escaped @ ('"' | '\\')) => word.push(escaped),
                        Some(other) => word.extend(['\\', other]),
                        None => return Err(SyntaxError { line, what: "a quote is not closed" }),
                    },
                    Some(other) => word.push(other),
                }
            }
            out.push(word);
        } else {
            let mut word = String::new();
            while let Some(letter) = letters.next_if(|letter| !letter.is_whitespace()) {
                word.push(letter);
            }
            out.push(word);
        }
    }
    Ok(out)
}

/// Reads a Corefile's server blocks.
///
/// # Errors
/// Braces or quotes are not closed, or blocks are too deep.
pub(super) fn read(text: &str) -> Result<Vec<Directive>, SyntaxError> {
    // The directives of each open block; the first is the file.
    let mut open: Vec<Vec<Directive>> = vec![Vec::new()];
    let mut last = 1;
    for (at, text) in text.lines().enumerate() {
        let line = at + 1;
        last = line;
        let mut words = words(text, line)?;
        let opens = words.last().is_some_and(|word| word == "{");
        if opens {
            words.pop();
        }
        let closes = words.iter().position(|word| word == "}");
        if let Some(close) = closes {
            let inner = open.pop();
            let (Some(inner), Some(outer)) = (inner, open.last_mut()) else {
                return Err(SyntaxError { line, what: "a closing brace without an opening one" });
            };
            if close > 0 || words.len() > 1 || opens {
                return Err(SyntaxError { line, what: "a closing brace must have a line of its own" });
            }
            if let Some(owner) = outer.last_mut() {
                owner.body = inner;
            }
            continue;
        }
        if words.is_empty() {
            if opens {
                return Err(SyntaxError { line, what: "a block without a name" });
            }
            continue;
        }
        if let Some(block) = open.last_mut() {
            block.push(Directive { line, words, body: Vec::new() });
        }
        if opens {
            if open.len() > DEEPEST {
                return Err(SyntaxError { line, what: "blocks are nested too deep" });
            }
            open.push(Vec::new());
        }
    }
    match open.pop() {
        Some(blocks) if open.is_empty() => Ok(blocks),
        _ => Err(SyntaxError { line: last, what: "a block is not closed" }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_words_quotes_and_comments() {
        let text = ". example.org {\n  # all of it\n  forward . \"a b\" c#d # end\n  hosts {\n    1.2.3.4 a\n  }\n}\n";
        let read = read(text).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].words, [".", "example.org"]);
        assert_eq!(read[0].body[0].words, ["forward", ".", "a b", "c#d"]);
        assert_eq!(read[0].body[0].line, 3);
        assert_eq!(read[0].body[1].body[0].words, ["1.2.3.4", "a"]);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        for (text, error) in [
            (". {\n  errors\n", "line 2: a block is not closed"),
            ("}\n", "line 1: a closing brace without an opening one"),
            (". {\nhosts { }\n}", "line 2: a closing brace must have a line of its own"),
            (". {\n\"x\n}", "line 2: a quote is not closed"),
            ("{\n}", "line 1: a block without a name"),
            ("a {\nb {\nc {\nd {\ne {\n}\n}\n}\n}\n}", "line 5: blocks are nested too deep"),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), error, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "[ \\n\\t{}a-c\"#\\\\.]{0,80}") {
            let _ = read(&text);
        }
    }
}
