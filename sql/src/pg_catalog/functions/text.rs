//! Functions of their arguments alone: arrays, quoting, formatting.

use super::super::cell::Cell;
use super::super::world::{World, quote_identifier};
use super::Outcome;
use crate::error::{SqlError, SqlState};

/// The text of an argument, as `text` would show it.
pub(super) fn text_of(cell: &Cell) -> String {
    match cell {
        Cell::Null => String::new(),
        Cell::Bool(value) => if *value { "t" } else { "f" }.to_owned(),
        Cell::Int(number) => number.to_string(),
        Cell::Text(text) => text.to_string(),
        Cell::List(items) => {
            format!("{{{}}}", items.iter().map(text_of).collect::<Vec<_>>().join(","))
        }
    }
}

pub(super) fn array_lower(_: &World, args: &[Cell]) -> Outcome {
    let has_items = matches!(&args[0], Cell::List(items) if !items.is_empty());
    Ok((has_items && args[1].as_int() == Some(1)).then_some(1).into())
}

pub(super) fn array_upper(_: &World, args: &[Cell]) -> Outcome {
    Ok(match &args[0] {
        Cell::List(items) if !items.is_empty() && args[1].as_int() == Some(1) => items.len().into(),
        _ => Cell::Null,
    })
}

/// What `generate_subscripts` would generate, counting from the third argument.
pub(super) fn array_subscripts(_: &World, args: &[Cell]) -> Outcome {
    let count = match &args[0] {
        Cell::List(items) if args[1].as_int() == Some(1) => items.len(),
        _ => 0,
    };
    let first = args[2].as_int().unwrap_or(1);
    Ok(Cell::List((first..).take(count).map(Cell::Int).collect()))
}

/// NULLs are left out, or shown as the third argument says.
pub(super) fn array_to_string(_: &World, args: &[Cell]) -> Outcome {
    let Cell::List(items) = &args[0] else { return Ok(Cell::Null) };
    let null = args.get(2).map(text_of);
    let shown = items.iter().filter_map(|item| match item {
        Cell::Null => null.clone(),
        item => Some(text_of(item)),
    });
    Ok(shown.collect::<Vec<_>>().join(&text_of(&args[1])).into())
}

/// `%s`, `%I` as an identifier, `%L` as a literal, `%%`; neither positions nor widths.
pub(super) fn format_text(world: &World, args: &[Cell]) -> Outcome {
    let invalid = |message: String| SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message);
    if args[0] == Cell::Null {
        return Ok(Cell::Null);
    }
    let pattern = text_of(&args[0]);
    let mut values = args[1..].iter();
    let mut text = String::new();
    let mut pieces = pattern.split('%');
    text.push_str(pieces.next().unwrap_or_default());
    while let Some(piece) = pieces.next() {
        let mut rest = piece.chars();
        let Some(kind) = rest.next() else {
            text.push('%');
            let Some(piece) = pieces.next() else {
                return Err(invalid("unterminated format() type specifier".to_owned()));
            };
            text.push_str(piece);
            continue;
        };
        let mut value =
            || values.next().ok_or_else(|| invalid("too few arguments for format()".to_owned()));
        text.push_str(&match kind {
            's' => text_of(value()?),
            'I' => quote_identifier(&text_of(value()?)),
            'L' => text_of(&quote_nullable(world, &[value()?.clone()])?),
            other => {
                return Err(invalid(format!("unrecognized format() type specifier \"{other}\"")));
            }
        });
        text.push_str(rest.as_str());
    }
    Ok(text.into())
}

pub(super) fn json_build_object(_: &World, args: &[Cell]) -> Outcome {
    let invalid = |message| SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message);
    if !args.len().is_multiple_of(2) {
        return Err(invalid("argument list must have even number of elements"));
    }
    let mut object = serde_json::Map::new();
    for pair in args.chunks_exact(2) {
        if pair[0] == Cell::Null {
            return Err(invalid("null value not allowed for object key"));
        }
        object.insert(text_of(&pair[0]), json_of(&pair[1]));
    }
    Ok(serde_json::Value::Object(object).to_string().into())
}

fn json_of(cell: &Cell) -> serde_json::Value {
    match cell {
        Cell::Null => serde_json::Value::Null,
        Cell::Bool(value) => (*value).into(),
        Cell::Int(number) => (*number).into(),
        Cell::Text(text) => text.as_ref().into(),
        Cell::List(items) => items.iter().map(json_of).collect(),
    }
}

/// A pattern of LIKE with another escape character, or none, as one with the backslash.
pub(super) fn like_escape(_: &World, args: &[Cell]) -> Outcome {
    let escape = text_of(&args[1]);
    let mut characters = escape.chars();
    let (escape, None) = (characters.next(), characters.next()) else {
        return Err(SqlError::new(SqlState::INVALID_PARAMETER_VALUE, "invalid escape string")
            .hint("Escape string must be empty or one character."));
    };
    let mut pattern = String::new();
    let mut escaped = false;
    for c in text_of(&args[0]).chars() {
        if !escaped && Some(c) == escape {
            escaped = true;
            pattern.push('\\');
            continue;
        }
        if !escaped && c == '\\' {
            pattern.push('\\');
        }
        pattern.push(c);
        escaped = false;
    }
    Ok(pattern.into())
}

/// Bytes, then the next greater unit from ten thousand of the smaller on, rounded.
pub(super) fn size_pretty(_: &World, args: &[Cell]) -> Outcome {
    let Some(bytes) = args[0].as_int() else { return Ok(Cell::Null) };
    if bytes.unsigned_abs() < 10 * 1024 {
        return Ok(format!("{bytes} bytes").into());
    }
    // One bit more than the unit's, to round by.
    let mut halves = bytes >> 9;
    for unit in ["kB", "MB", "GB", "TB"] {
        if halves.unsigned_abs() < 20 * 1024 - 1 {
            return Ok(format!("{} {unit}", rounded_half(halves)).into());
        }
        halves >>= 10;
    }
    Ok(format!("{} PB", rounded_half(halves)).into())
}

fn rounded_half(halves: i64) -> i64 {
    i64::midpoint(halves, if halves < 0 { -1 } else { 1 })
}

pub(super) fn quote_ident(_: &World, args: &[Cell]) -> Outcome {
    Ok(quote_identifier(&text_of(&args[0])).into())
}

pub(super) fn quote_literal(_: &World, args: &[Cell]) -> Outcome {
    let text = text_of(&args[0]);
    let quoted = text.replace('\'', "''");
    Ok(if text.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
    .into())
}

pub(super) fn quote_nullable(world: &World, args: &[Cell]) -> Outcome {
    if args[0] == Cell::Null { Ok("NULL".into()) } else { quote_literal(world, args) }
}

#[cfg(test)]
mod tests {
    use super::super::library::call;
    use super::*;

    // What PostgreSQL 15 answers to the same calls.
    #[test]
    fn sizes_read_as_in_postgresql() {
        for (bytes, expected) in [
            (0, "0 bytes"),
            (10_239, "10239 bytes"),
            (10_240, "10 kB"),
            (-10_240, "-10 kB"),
            (1_000_000, "977 kB"),
            (10_485_247, "10239 kB"),
            (10_485_248, "10 MB"),
            (123_456_789_012, "115 GB"),
            (i64::MAX, "8192 PB"),
        ] {
            let args = [Cell::Int(bytes)];
            assert_eq!(call("pg_size_pretty", &args).unwrap(), Cell::from(expected));
        }
    }

    #[test]
    fn texts_are_quoted_as_in_postgresql() {
        for (text, expected) in [("a'b", "'a''b'"), ("a\\b", "E'a\\\\b'"), ("", "''")] {
            assert_eq!(call("quote_literal", &[Cell::from(text)]).unwrap(), Cell::from(expected));
        }
        assert_eq!(call("quote_nullable", &[Cell::Null]).unwrap(), Cell::from("NULL"));
    }

    // What PostgreSQL 15 answers to the same calls.
    #[test]
    fn patterns_are_escaped_anew() {
        for (pattern, escape, expected) in [
            ("pg/_%", "/", "pg\\_%"),
            ("a//b", "/", "a\\/b"),
            ("a\\b", "/", "a\\\\b"),
            ("a\\_b", "", "a\\\\_b"),
            ("a\\_b", "\\", "a\\_b"),
        ] {
            let found = call("like_escape", &[Cell::from(pattern), Cell::from(escape)]).unwrap();
            assert_eq!(found, Cell::from(expected), "{pattern} {escape}");
        }
        assert!(call("like_escape", &[Cell::from("a"), Cell::from("ab")]).is_err());
    }

    #[test]
    fn texts_are_formatted() {
        let args = ["%s 100%% of %I = %L", "all", "A b", "it's"].map(Cell::from);
        let found = call("format", &args).unwrap();
        assert_eq!(found, Cell::from("all 100% of \"A b\" = 'it''s'"));
        for pattern in ["%s", "%", "%x"] {
            let error = call("format", &[Cell::from(pattern)]).unwrap_err();
            assert_eq!(error.sqlstate, SqlState::INVALID_PARAMETER_VALUE, "{pattern}");
        }
        let object = call("json_build_object", &["a", "b"].map(Cell::from)).unwrap();
        assert_eq!(object, Cell::from("{\"a\":\"b\"}"));
    }

    #[test]
    fn arrays_become_text() {
        let items = Cell::List(vec![Cell::from("a"), Cell::Null, Cell::Int(2)]);
        let comma = Cell::from(",");
        let without = call("array_to_string", &[items.clone(), comma.clone()]).unwrap();
        assert_eq!(without, Cell::from("a,2"));
        let with = call("array_to_string", &[items, comma, Cell::from("*")]).unwrap();
        assert_eq!(with, Cell::from("a,*,2"));
    }
}
