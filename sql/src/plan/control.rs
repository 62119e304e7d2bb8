//! The statements that begin and end transactions, as PostgreSQL writes them (its manual, the pages of
//! BEGIN, COMMIT, ROLLBACK, SAVEPOINT and SET TRANSACTION), and `AS OF SYSTEM TIME` after the modes.

use std::sync::Arc;

use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::names::fold;

/// A statement about the transaction that it stands in.
#[derive(Clone, Debug)]
pub(crate) enum Control {
    /// BEGIN, or START TRANSACTION.
    Begin {
        tag: &'static str,
        modes: Modes,
    },
    /// COMMIT, END.
    Commit {
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    RollBack {
        chain: bool,
    },
    Savepoint(String),
    Release(String),
    RollBackTo(String),
    /// SET TRANSACTION.
    Set(Modes),
    /// SET SESSION CHARACTERISTICS AS TRANSACTION.
    SetDefaults(Modes),
}

/// What a transaction is asked to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Modes {
    /// ISOLATION LEVEL; all that they say is how little would do.
    pub(crate) isolation: Option<&'static str>,
    pub(crate) read_only: Option<bool>,
    pub(crate) deferrable: Option<bool>,
    /// The point in time that a READ ONLY transaction reads at.
    pub(crate) as_of: Option<String>,
}

/// Whether the next words are these; takes them if so.
fn words(parser: &mut Parser<'_>, words: &[&str]) -> bool {
    let matches = words.iter().enumerate().all(|(place, word)| {
        matches!(&parser.peek_nth_token_ref(place).token,
            Token::Word(next) if next.quote_style.is_none() && next.value.eq_ignore_ascii_case(word))
    });
    if matches {
        words.iter().for_each(|_| drop(parser.next_token()));
    }
    matches
}

fn expect(parser: &mut Parser<'_>, word: &str) -> Result<(), ParserError> {
    if words(parser, &[word]) {
        return Ok(());
    }
    parser.expected_ref(&word.to_uppercase(), parser.peek_token_ref())
}

/// The statement, if it is one of these.
pub(super) fn parse(parser: &mut Parser<'_>) -> Result<Option<Control>, ParserError> {
    let control = if words(parser, &["begin"]) {
        let _ = work(parser);
        Control::Begin { tag: "BEGIN", modes: modes(parser, true)? }
    } else if words(parser, &["start", "transaction"]) {
        Control::Begin { tag: "START TRANSACTION", modes: modes(parser, true)? }
    } else if words(parser, &["commit"]) || words(parser, &["end"]) {
        let _ = work(parser);
        Control::Commit { chain: chain(parser)? }
    } else if words(parser, &["abort"]) {
        let _ = work(parser);
        Control::RollBack { chain: chain(parser)? }
    } else if words(parser, &["rollback"]) {
        let _ = work(parser);
        if words(parser, &["to"]) {
            let _ = words(parser, &["savepoint"]);
            Control::RollBackTo(name(parser)?)
        } else {
            Control::RollBack { chain: chain(parser)? }
        }
    } else if words(parser, &["savepoint"]) {
        Control::Savepoint(name(parser)?)
    } else if words(parser, &["release"]) {
        let _ = words(parser, &["savepoint"]);
        Control::Release(name(parser)?)
    } else if words(parser, &["set", "transaction"])
        || words(parser, &["set", "local", "transaction"])
    {
        Control::Set(modes(parser, false)?)
    } else if words(parser, &["set", "session", "characteristics", "as", "transaction"]) {
        Control::SetDefaults(modes(parser, false)?)
    } else {
        return Ok(None);
    };
    Ok(Some(control))
}

fn work(parser: &mut Parser<'_>) -> bool {
    words(parser, &["work"]) || words(parser, &["transaction"])
}

fn name(parser: &mut Parser<'_>) -> Result<String, ParserError> {
    Ok(fold(&parser.parse_identifier()?))
}

fn chain(parser: &mut Parser<'_>) -> Result<bool, ParserError> {
    if !words(parser, &["and"]) {
        return Ok(false);
    }
    let chain = !words(parser, &["no"]);
    expect(parser, "chain")?;
    Ok(chain)
}

/// A constant, perhaps with its type in front.
fn time(parser: &mut Parser<'_>) -> Result<String, ParserError> {
    let _ = words(parser, &["timestamptz"]) || words(parser, &["timestamp"]);
    match parser.next_token().token {
        Token::SingleQuotedString(time) => Ok(time),
        _ => {
            parser.prev_token();
            parser.expected_ref("a time in quotes", parser.peek_token_ref())
        }
    }
}

/// Takes AS OF SYSTEM TIME, and the constant that follows, out of a statement, wherever it stands
/// outside of parentheses. BEGIN's stays.
pub(super) fn without_time(tokens: &[TokenWithSpan]) -> (Vec<TokenWithSpan>, Option<Arc<str>>) {
    let solid: Vec<usize> = (0..tokens.len())
        .filter(|place| !matches!(tokens[*place].token, Token::Whitespace(_)))
        .collect();
    let word = |place: usize, word: &str| {
        let token = solid.get(place).map(|place| &tokens[*place].token);
        matches!(token, Some(Token::Word(next))
            if next.quote_style.is_none() && next.value.eq_ignore_ascii_case(word))
    };
    let mut depth = 0_i32;
    if !word(0, "begin") && !word(0, "start") {
        for place in 0..solid.len() {
            match tokens[solid[place]].token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                _ => {}
            }
            let clause = ["as", "of", "system", "time"];
            let found = |(by, of): (usize, &&str)| word(place + by, of);
            if depth != 0 || !clause.iter().enumerate().all(found) {
                continue;
            }
            let typed = word(place + 4, "timestamptz") || word(place + 4, "timestamp");
            let constant = place + 4 + usize::from(typed);
            let Some(&end) = solid.get(constant) else { break };
            if let Token::SingleQuotedString(time) = &tokens[end].token {
                let rest = [&tokens[..solid[place]], &tokens[end + 1..]].concat();
                return (rest, Some(Arc::from(time.as_str())));
            }
        }
    }
    (tokens.to_vec(), None)
}

/// With or without commas between them; none at all where that is `allowed`.
fn modes(parser: &mut Parser<'_>, allowed: bool) -> Result<Modes, ParserError> {
    let mut modes = Modes::default();
    let mut any = false;
    loop {
        if words(parser, &["isolation", "level"]) {
            let levels = [
                ("serializable", &["serializable"][..]),
                ("repeatable read", &["repeatable", "read"]),
                ("read committed", &["read", "committed"]),
                ("read uncommitted", &["read", "uncommitted"]),
            ];
            let found = levels.into_iter().find(|(_, level)| words(parser, level));
            let Some((level, _)) = found else {
                return parser.expected_ref("an isolation level", parser.peek_token_ref());
            };
            modes.isolation = Some(level);
        } else if words(parser, &["read", "only"]) {
            modes.read_only = Some(true);
        } else if words(parser, &["read", "write"]) {
            modes.read_only = Some(false);
        } else if words(parser, &["deferrable"]) {
            modes.deferrable = Some(true);
        } else if words(parser, &["not", "deferrable"]) {
            modes.deferrable = Some(false);
        } else if words(parser, &["as", "of", "system", "time"]) {
            modes.as_of = Some(time(parser)?);
        } else if any || !allowed {
            return parser.expected_ref("a transaction mode", parser.peek_token_ref());
        } else {
            return Ok(modes);
        }
        any = parser.consume_token(&Token::Comma);
        let at_end = matches!(parser.peek_token_ref().token, Token::EOF | Token::SemiColon);
        if at_end && !any {
            return Ok(modes);
        }
        any = true;
    }
}
