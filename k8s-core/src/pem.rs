//! PEM: DER in base64 between lines of text, as certificates and keys are stored.
//!
//! ```
//! use k8s_core::pem;
//! let text = "mine\n-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
//! let blocks = pem::blocks(text);
//! assert_eq!((blocks[0].label.as_str(), &blocks[0].contents[..]), ("CERTIFICATE", &[1, 2, 3][..]));
//! assert_eq!(pem::encode("CERTIFICATE", &[1, 2, 3]), &text[5..]);
//! ```

use base64::{Engine, engine::general_purpose::STANDARD};

/// A block of a PEM text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Label of its first and last line, such as `CERTIFICATE`.
    pub label: String,
    /// True if it has headers, such as `Proc-Type`.
    pub has_headers: bool,
    /// Decoded bytes.
    pub contents: Vec<u8>,
}

/// Returns the blocks of a text. Text outside of blocks is ignored; a block whose last line does not match
/// its first, or whose body is no base64, is left out.
#[must_use]
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(Block, String)> = None;
    for line in text.lines().map(str::trim) {
        let marker = |edge: &str| line.strip_prefix(edge).and_then(|rest| rest.strip_suffix("-----"));
        if let Some(label) = marker("-----BEGIN ") {
            let block = Block { label: label.to_owned(), has_headers: false, contents: Vec::new() };
            open = Some((block, String::new()));
        } else if let Some(label) = marker("-----END ") {
            let ended = open.take().filter(|(block, _)| block.label == label);
            if let Some((mut block, body)) = ended
                && let Ok(contents) = STANDARD.decode(body)
            {
                block.contents = contents;
                blocks.push(block);
            }
        } else if let Some((block, body)) = &mut open {
            if line.contains(':') {
                block.has_headers = true;
            } else {
                body.push_str(line);
            }
        }
    }
    blocks
}

/// Encodes bytes as a block, with lines of 64 characters.
#[must_use]
pub fn encode(label: &str, contents: &[u8]) -> String {
    let body = STANDARD.encode(contents);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII, so that every place is a border of characters.
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_as_they_are_written() {
        for length in [0, 1, 47, 48, 49, 1000] {
            let contents = vec![7; length];
            let text = encode("A B", &contents);
            assert!(text.lines().all(|line| line.len() <= 64), "{text}");
            assert_eq!(blocks(&text), [Block { label: "A B".into(), has_headers: false, contents }]);
        }
    }

    #[test]
    fn damaged_blocks_are_left_out() {
        let good = encode("B", &[1]);
        for bad in [
            "-----BEGIN A-----\nA!\n-----END A-----\n",
            "-----BEGIN A-----\nAQ==\n-----END C-----\n",
            "-----BEGIN A-----\nAQ==\n",
            "AQ==\n-----END A-----\n",
        ] {
            let found: Vec<String> = blocks(&format!("{bad}{good}")).into_iter().map(|b| b.label).collect();
            assert_eq!(found, ["B"], "{bad}");
        }
        let headed = blocks("-----BEGIN A-----\nProc-Type: 4\n\nAQ==\n-----END A-----\n");
        assert_eq!(headed, [Block { label: "A".into(), has_headers: true, contents: vec![1] }]);
    }
}
