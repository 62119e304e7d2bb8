//! `jsonb` as text in PostgreSQL's normal form.
//!
//! PostgreSQL stores `jsonb` as a tree and prints it in one way: a blank after `,` and `:`, keys
//! ordered by length and then by bytes, of equal keys the last, numbers as `numeric` prints them
//! (`1e2` is `100`, `1.50` stays), only the escapes that are needed. A value is brought into that
//! form when it comes in and kept as text, so that equal values are equal strings.

use std::fmt::Write as _;

use bytes::BytesMut;

use super::decimal::Decimal;
use crate::error::{SqlError, SqlState};

/// Arrays and objects inside each other; PostgreSQL's own limit is the depth of its stack.
const MAX_DEPTH: usize = 1000;

/// The bytes of a value at most, as PostgreSQL bounds the elements of an object.
const MAX_LENGTH: usize = 0x0fff_ffff;

/// Parses JSON text and writes it in normal form.
///
/// # Errors
/// `22P02` with PostgreSQL's detail, `22P05` for `\u0000`, `54001` if nested too deeply, `54000`
/// if too long.
pub fn normalize(text: &str) -> Result<String, SqlError> {
    let mut parser = Parser { text, at: 0, token: Token::End, start: 0, depth: 0 };
    parser.advance()?;
    let value = parser.value()?;
    if !matches!(parser.token, Token::End) {
        return Err(parser.unexpected("end of input"));
    }
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    write(&value, &mut out)?;
    Ok(out)
}

enum Json {
    /// `null`, `true`, `false` and numbers, as they print.
    Plain(String),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

enum Token {
    End,
    /// One of `{}[],:`.
    Mark(u8),
    Plain(String),
    Text(String),
}

struct Parser<'a> {
    text: &'a str,
    /// After the token.
    at: usize,
    token: Token,
    /// Where the token begins.
    start: usize,
    depth: usize,
}

fn invalid(detail: String) -> SqlError {
    SqlError::new(SqlState::INVALID_TEXT_REPRESENTATION, "invalid input syntax for type json")
        .detail(detail)
}

/// What a number or a word goes on with: every byte of a non-ASCII character too.
const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_while(&mut self, accept: impl Fn(u8) -> bool) -> usize {
        let start = self.at;
        while self.peek().is_some_and(&accept) {
            self.at += 1;
        }
        self.at - start
    }

    /// Words end at ASCII bytes or the end, so a token is always whole characters.
    fn token_text(&self) -> &str {
        self.text.get(self.start..self.at).unwrap_or_default()
    }

    fn invalid_token(&self) -> SqlError {
        invalid(format!("Token \"{}\" is invalid.", self.token_text()))
    }

    fn unexpected(&self, expected: &str) -> SqlError {
        match self.token {
            Token::End => invalid("The input string ended unexpectedly.".to_owned()),
            _ => invalid(format!("Expected {expected}, but found \"{}\".", self.token_text())),
        }
    }

    fn advance(&mut self) -> Result<(), SqlError> {
        self.skip_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
        self.start = self.at;
        self.token = match self.peek() {
            None => Token::End,
            Some(mark @ (b'{' | b'}' | b'[' | b']' | b',' | b':')) => {
                self.at += 1;
                Token::Mark(mark)
            }
            Some(b'"') => Token::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => Token::Plain(self.number()?),
            Some(_) => {
                if self.skip_while(is_word) == 0 {
                    self.at += 1;
                }
                match self.token_text() {
                    word @ ("null" | "true" | "false") => Token::Plain(word.to_owned()),
                    _ => return Err(self.invalid_token()),
                }
            }
        };
        Ok(())
    }

    fn number(&mut self) -> Result<String, SqlError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let mut well_formed = match self.peek() {
            Some(b'0') => {
                self.at += 1;
                true
            }
            _ => self.skip_while(|byte| byte.is_ascii_digit()) > 0,
        };
        if well_formed && self.peek() == Some(b'.') {
            self.at += 1;
            well_formed = self.skip_while(|byte| byte.is_ascii_digit()) > 0;
        }
        if well_formed && matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            well_formed = self.skip_while(|byte| byte.is_ascii_digit()) > 0;
        }
        if self.skip_while(is_word) > 0 || !well_formed {
            return Err(self.invalid_token());
        }
        let mut out = BytesMut::new();
        Decimal::parse(self.token_text())?.write(&mut out);
        Ok(out.iter().map(|byte| char::from(*byte)).collect())
    }

    fn string(&mut self) -> Result<String, SqlError> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let from = self.at;
            self.skip_while(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\');
            out.push_str(&self.text[from..self.at]);
            match self.peek() {
                None => return Err(self.invalid_token()),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => out.push(self.escape()?),
                Some(control) => {
                    return Err(invalid(format!(
                        "Character with value 0x{control:02x} must be escaped."
                    )));
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char, SqlError> {
        let begin = self.at;
        self.at += 1;
        let Some(escaped) = self.text[self.at..].chars().next() else {
            return Err(self.invalid_token());
        };
        self.at += escaped.len_utf8();
        Ok(match escaped {
            '"' | '\\' | '/' => escaped,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => return self.unicode(),
            _ => {
                let sequence = &self.text[begin..self.at];
                return Err(invalid(format!("Escape sequence \"{sequence}\" is invalid.")));
            }
        })
    }

    /// After `\u`: four hex digits, and its second half if they are a high surrogate.
    fn unicode(&mut self) -> Result<char, SqlError> {
        let first = self.hex()?;
        if first == 0 {
            return Err(SqlError::new(
                SqlState::UNTRANSLATABLE_CHARACTER,
                "unsupported Unicode escape sequence",
            )
            .detail("\\u0000 cannot be converted to text."));
        }
        let unpaired = || invalid("Unicode low surrogate must follow a high surrogate.".to_owned());
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first).ok_or_else(unpaired);
        }
        if !self.text[self.at..].starts_with("\\u") {
            return Err(unpaired());
        }
        self.at += 2;
        match self.hex()? {
            second @ 0xdc00..0xe000 => {
                let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                char::from_u32(code).ok_or_else(unpaired)
            }
            0xd800..0xdc00 => {
                Err(invalid("Unicode high surrogate must not follow a high surrogate.".to_owned()))
            }
            _ => Err(unpaired()),
        }
    }

    fn hex(&mut self) -> Result<u32, SqlError> {
        let digits = self.text.get(self.at..self.at + 4);
        let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        match digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
            Some(code) => {
                self.at += 4;
                Ok(code)
            }
            None => Err(invalid("\"\\u\" must be followed by four hexadecimal digits.".to_owned())),
        }
    }

    fn value(&mut self) -> Result<Json, SqlError> {
        let token = std::mem::replace(&mut self.token, Token::End);
        let value = match token {
            Token::Plain(plain) => Json::Plain(plain),
            Token::Text(text) => Json::Text(text),
            Token::Mark(mark @ (b'[' | b'{')) => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(SqlError::new(
                        SqlState::STATEMENT_TOO_COMPLEX,
                        "stack depth limit exceeded",
                    )
                    .detail(format!("JSON values nest at most {MAX_DEPTH} levels deep.")));
                }
                self.advance()?;
                let value = if mark == b'[' { self.array()? } else { self.object()? };
                self.depth -= 1;
                value
            }
            other => {
                self.token = other;
                return Err(self.unexpected("JSON value"));
            }
        };
        self.advance()?;
        Ok(value)
    }

    /// After `[`, up to and including the token `]`, which the caller consumes.
    fn array(&mut self) -> Result<Json, SqlError> {
        let mut elements = Vec::new();
        if matches!(self.token, Token::Mark(b']')) {
            return Ok(Json::Array(elements));
        }
        loop {
            elements.push(self.value()?);
            match self.token {
                Token::Mark(b',') => self.advance()?,
                Token::Mark(b']') => return Ok(Json::Array(elements)),
                _ => return Err(self.unexpected("\",\" or \"]\"")),
            }
        }
    }

    /// After `{`, up to and including the token `}`, which the caller consumes.
    fn object(&mut self) -> Result<Json, SqlError> {
        let mut members = Vec::new();
        if matches!(self.token, Token::Mark(b'}')) {
            return Ok(Json::Object(members));
        }
        loop {
            let key = match std::mem::replace(&mut self.token, Token::End) {
                Token::Text(key) => key,
                other => {
                    self.token = other;
                    let first = members.is_empty();
                    return Err(self.unexpected(if first { "string or \"}\"" } else { "string" }));
                }
            };
            self.advance()?;
            if !matches!(self.token, Token::Mark(b':')) {
                return Err(self.unexpected("\":\""));
            }
            self.advance()?;
            let value = self.value()?;
            members.push((key, value));
            match self.token {
                Token::Mark(b',') => self.advance()?,
                Token::Mark(b'}') => break,
                _ => return Err(self.unexpected("\",\" or \"}\"")),
            }
        }
        // A stable sort keeps equal keys in their order, so the last of them wins.
        members.sort_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
        members.reverse();
        members.dedup_by(|(later, _), (kept, _)| later == kept);
        members.reverse();
        Ok(Json::Object(members))
    }
}

fn write(value: &Json, out: &mut String) -> Result<(), SqlError> {
    match value {
        Json::Plain(plain) => out.push_str(plain),
        Json::Text(text) => write_text(text, out),
        Json::Array(elements) => {
            out.push('[');
            for (index, element) in elements.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write(element, out)?;
            }
            out.push(']');
        }
        Json::Object(members) => {
            out.push('{');
            for (index, (key, value)) in members.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_text(key, out);
                out.push_str(": ");
                write(value, out)?;
            }
            out.push('}');
        }
    }
    if out.len() > MAX_LENGTH {
        return Err(SqlError::new(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("total size of jsonb elements exceeds the maximum of {MAX_LENGTH} bytes"),
        ));
    }
    Ok(())
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..' ' => {
                // Writing to a string doesn't fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn deep_nesting_ends_with_an_error() {
        let fits = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert_eq!(normalize(&fits).expect("fits"), fits);
        for opening in ["[", "{\"a\":"] {
            let error = normalize(&opening.repeat(100_000)).expect_err("too deep");
            assert_eq!(error.sqlstate, SqlState::STATEMENT_TOO_COMPLEX);
        }
    }

    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|b| b.to_string()),
            any::<i64>().prop_map(|n| n.to_string()),
            (-1000_i32..1000, 0_u8..20).prop_map(|(m, e)| format!("{m}.50e-{e}")),
            ".*".prop_map(|s| serde_json::to_string(&s).expect("a string")),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..8)
                    .prop_map(|elements| format!("[{}]", elements.join(" ,"))),
                proptest::collection::vec(("[a-c]{0,2}", inner), 0..8).prop_map(|members| {
                    let members: Vec<String> =
                        members.iter().map(|(k, v)| format!("\"{k}\" :{v}")).collect();
                    format!("{{{}}}", members.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn normal_form_is_stable_and_means_the_same(text in json().prop_filter(
            "PostgreSQL refuses the null character", |text| !text.contains("\\u0000"),
        )) {
            let normal = normalize(&text).expect("valid");
            prop_assert_eq!(&normalize(&normal).expect("still valid"), &normal);
            let before: serde_json::Value = serde_json::from_str(&text).expect("valid");
            let after: serde_json::Value = serde_json::from_str(&normal).expect("valid");
            // Numbers may change their spelling, not their value.
            prop_assert!(same(&before, &after), "{before} {after}");
        }

        #[test]
        fn random_text_never_panics(text in ".*") {
            let _ = normalize(&text);
        }
    }

    fn same(a: &serde_json::Value, b: &serde_json::Value) -> bool {
        use serde_json::Value;
        match (a, b) {
            (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
            (Value::Array(a), Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Value::Object(a), Value::Object(b)) => {
                a.len() == b.len()
                    && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
            }
            _ => a == b,
        }
    }
}
