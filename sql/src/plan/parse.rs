//! From text to statements: splitting, limits that keep the stack safe, PostgreSQL's messages.
//!
//! The parser, the planner and the drop of what they build all recurse as deep as the statement
//! nests, and a chain of operators (`1 + 1 + ...`) nests as deep as it is long. So the depth is
//! bounded on the tokens, before anything recursive sees them.

use std::sync::Arc;

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use super::control::{self, Control};
use super::grammar::Grammar;
use crate::error::{SqlError, SqlState};

/// The longest text accepted at once, in bytes.
pub const MAX_TEXT: usize = 64 << 20;
/// The deepest nesting of operators and parentheses accepted.
const MAX_DEPTH: usize = 300;
/// The stack that a thread needs to parse, plan and run the deepest statement accepted, in bytes
/// (unoptimized; less otherwise). Threads that run sessions must have that much.
pub const STACK: usize = 8 * (8 << 20);
/// How deep the parser itself may recurse (parentheses, subqueries, prefix operators).
const MAX_RECURSION: usize = 64;

const DIALECT: Grammar = Grammar;

/// One statement, parsed.
#[derive(Clone, Debug)]
pub struct Statement {
    sql: Arc<str>,
    kind: Kind,
    /// AS OF SYSTEM TIME.
    as_of: Option<Arc<str>>,
}

/// What a statement is.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Nothing to do.
    Empty,
    /// About the transaction that it stands in.
    Control(Arc<Control>),
    Sql(Arc<ast::Statement>),
}

impl Statement {
    /// Its own text, without what precedes or follows it.
    #[must_use]
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// What was parsed.
    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// What sqlparser made of it, unless it is empty or about its transaction.
    pub(crate) fn ast(&self) -> Option<&Arc<ast::Statement>> {
        match &self.kind {
            Kind::Sql(ast) => Some(ast),
            Kind::Empty | Kind::Control(_) => None,
        }
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self.kind, Kind::Empty)
    }

    /// The point in time that it is to read at.
    pub(crate) fn as_of(&self) -> Option<&str> {
        self.as_of.as_deref()
    }

    pub(crate) fn shared_sql(&self) -> Arc<str> {
        Arc::clone(&self.sql)
    }
}

/// Splits a text at its semicolons and parses each statement; empty ones are left out.
///
/// # Errors
/// `42601` with the position, `54000` or `54001` for a text too long or too deep.
pub fn parse(sql: &str) -> Result<Vec<Statement>, SqlError> {
    let tokens = tokenize(sql)?;
    let offsets = Offsets::new(sql);
    let mut statements = Vec::new();
    for piece in tokens.split(|token| token.token == Token::SemiColon) {
        if let Some(statement) = parse_piece(sql, piece, &offsets)? {
            statements.push(statement);
        }
    }
    Ok(statements)
}

/// Parses the only statement of a text, which may be empty.
///
/// # Errors
/// As [`parse`]; `42601` if there are several.
pub fn parse_one(sql: &str) -> Result<Statement, SqlError> {
    let mut statements = parse(sql)?;
    if statements.len() > 1 {
        return Err(SqlError::syntax("cannot insert multiple commands into a prepared statement"));
    }
    Ok(statements.pop().unwrap_or_else(|| Statement {
        sql: Arc::from(sql),
        kind: Kind::Empty,
        as_of: None,
    }))
}

/// Parses a lone expression (a column's default).
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_expression(sql: &str) -> Result<ast::Expr, SqlError> {
    let tokens = tokenize(sql)?;
    check_depth(&tokens)?;
    let mut parser = parser(tokens);
    let expression = parser.parse_expr().map_err(|e| syntax_error(sql, 0, &e))?;
    match parser.peek_token().token {
        Token::EOF => Ok(expression),
        other => Err(SqlError::syntax(format!("syntax error at or near \"{other}\""))),
    }
}

fn parser(tokens: Vec<TokenWithSpan>) -> Parser<'static> {
    Parser::new(&DIALECT).with_recursion_limit(MAX_RECURSION).with_tokens_with_locations(tokens)
}

fn tokenize(sql: &str) -> Result<Vec<TokenWithSpan>, SqlError> {
    if sql.len() > MAX_TEXT {
        let message = format!("statement is longer than {} MiB", MAX_TEXT >> 20);
        return Err(SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
            .hint("Split it into several statements."));
    }
    Tokenizer::new(&DIALECT, sql)
        .tokenize_with_location()
        .map_err(|e| syntax_error(sql, 0, &ParserError::TokenizerError(e.to_string())))
}

fn parse_piece(
    sql: &str,
    tokens: &[TokenWithSpan],
    offsets: &Offsets,
) -> Result<Option<Statement>, SqlError> {
    let is_space = |token: &&TokenWithSpan| matches!(token.token, Token::Whitespace(_));
    let mut solid = tokens.iter().filter(|token| !is_space(token) && token.token != Token::EOF);
    let Some(first) = solid.next() else {
        return Ok(None);
    };
    let last = solid.next_back().unwrap_or(first);
    check_depth(tokens)?;
    let start = offsets.byte(sql, first.span.start);
    let end = offsets.byte(sql, last.span.end).max(start);
    let located = |e: &ParserError| syntax_error(sql, end, e);
    let (tokens, as_of) = control::without_time(tokens);
    let mut parser = parser(tokens);
    let kind = match control::parse(&mut parser).map_err(|e| located(&e))? {
        Some(control) => Kind::Control(Arc::new(control)),
        None => Kind::Sql(Arc::new(parser.parse_statement().map_err(|e| located(&e))?)),
    };
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        let position = offsets.character(sql, rest.span.start);
        let message = format!("syntax error at or near \"{}\"", rest.token);
        return Err(SqlError::syntax(message).position(position));
    }
    let text = sql.get(start..end).unwrap_or(sql);
    if as_of.is_some() && !reads(&kind) {
        return Err(SqlError::syntax("AS OF SYSTEM TIME is for SELECT, and for BEGIN READ ONLY"));
    }
    Ok(Some(Statement { sql: Arc::from(text), kind, as_of }))
}

/// Whether a statement does nothing but read.
fn reads(kind: &Kind) -> bool {
    match kind {
        Kind::Sql(ast) => match ast.as_ref() {
            ast::Statement::Explain { statement, .. } => {
                matches!(statement.as_ref(), ast::Statement::Query(_))
            }
            other => matches!(other, ast::Statement::Query(_)),
        },
        Kind::Empty | Kind::Control(_) => false,
    }
}

/// How deep the operators of one level of parentheses nest, as far as it was read: AND, OR and the
/// set operations in a chain above their longest operand.
#[derive(Clone, Copy, Default)]
struct Level {
    chain: usize,
    operand: usize,
    longest_operand: usize,
}

impl Level {
    fn depth(&self) -> usize {
        self.chain + self.longest_operand.max(self.operand)
    }

    fn link(&mut self) {
        self.chain += 1;
        self.longest_operand = self.longest_operand.max(self.operand);
        self.operand = 0;
    }
}

/// Refuses what would nest deeper than [`MAX_DEPTH`]. Operators of one level add up until a comma.
fn check_depth(tokens: &[TokenWithSpan]) -> Result<(), SqlError> {
    let mut outer: Vec<Level> = Vec::new();
    let mut outer_depth = 0_usize;
    let mut here = Level::default();
    for token in tokens {
        match &token.token {
            token @ (Token::LParen | Token::LBracket | Token::LBrace) => {
                // A subscript is an operator, and may be followed by another.
                here.operand += usize::from(*token == Token::LBracket);
                outer_depth += here.depth() + 1;
                outer.push(here);
                here = Level::default();
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                here = outer.pop().unwrap_or_default();
                outer_depth = outer_depth.saturating_sub(here.depth() + 1);
            }
            Token::Comma => here = Level::default(),
            Token::Word(word) if word.quote_style.is_none() && is_link(word.keyword) => here.link(),
            token if deepens(token) => here.operand += 1,
            _ => {}
        }
        if outer_depth + here.depth() > MAX_DEPTH {
            return Err(SqlError::new(SqlState::STATEMENT_TOO_COMPLEX, "statement is too complex")
                .detail(format!("Operators and parentheses nest deeper than {MAX_DEPTH} levels."))
                .hint("Use IN lists, or join with VALUES, in place of long chains."));
        }
    }
    Ok(())
}

fn is_link(keyword: Keyword) -> bool {
    matches!(
        keyword,
        Keyword::AND | Keyword::OR | Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT
    )
}

fn deepens(token: &Token) -> bool {
    match token {
        Token::Word(word) => {
            word.quote_style.is_none()
                && matches!(
                    word.keyword,
                    Keyword::NOT
                        | Keyword::IS
                        | Keyword::IN
                        | Keyword::LIKE
                        | Keyword::ILIKE
                        | Keyword::SIMILAR
                        | Keyword::BETWEEN
                        | Keyword::ANY
                        | Keyword::ALL
                        | Keyword::SOME
                        | Keyword::CASE
                        | Keyword::WHEN
                        | Keyword::ELSE
                        | Keyword::COLLATE
                        | Keyword::AT
                        | Keyword::INTERVAL
                        | Keyword::JOIN
                        | Keyword::EXPLAIN
                        | Keyword::PREPARE
                        | Keyword::OPERATOR
                )
        }
        Token::EOF
        | Token::Whitespace(_)
        | Token::Number(..)
        | Token::Char(_)
        | Token::SingleQuotedString(_)
        | Token::DollarQuotedString(_)
        | Token::NationalStringLiteral(_)
        | Token::EscapedStringLiteral(_)
        | Token::UnicodeStringLiteral(_)
        | Token::HexStringLiteral(_)
        | Token::SingleQuotedByteStringLiteral(_)
        | Token::DoubleQuotedString(_)
        | Token::Placeholder(_)
        | Token::Period
        | Token::SemiColon => false,
        _ => true,
    }
}

/// Where each line begins, in bytes: the parser speaks of lines and columns.
struct Offsets(Vec<usize>);

impl Offsets {
    fn new(sql: &str) -> Self {
        let later = sql.bytes().enumerate().filter(|&(_, b)| b == b'\n').map(|(at, _)| at + 1);
        Self(std::iter::once(0).chain(later).collect())
    }

    fn byte(&self, sql: &str, location: Location) -> usize {
        let line = usize::try_from(location.line.saturating_sub(1)).unwrap_or(0);
        let Some(&start) = self.0.get(line) else {
            return sql.len();
        };
        let column = usize::try_from(location.column.saturating_sub(1)).unwrap_or(0);
        let rest = sql.get(start..).unwrap_or("");
        rest.char_indices().nth(column).map_or(sql.len(), |(at, _)| start + at)
    }

    /// Counted in characters from 1, as PostgreSQL does.
    fn character(&self, sql: &str, location: Location) -> usize {
        let byte = self.byte(sql, location);
        sql.get(..byte).unwrap_or("").chars().count() + 1
    }
}

/// PostgreSQL's message for what the parser found wrong; `end` is where the statement ends.
fn syntax_error(sql: &str, end: usize, error: &ParserError) -> SqlError {
    let text = match error {
        ParserError::RecursionLimitExceeded => {
            return SqlError::new(SqlState::STATEMENT_TOO_COMPLEX, "statement is too complex")
                .detail(format!("Expressions nest deeper than {MAX_RECURSION} levels."));
        }
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
    };
    let (what, location) = match text.rsplit_once(" at Line: ") {
        Some((what, at)) => (what, parse_location(at)),
        None => (text.as_str(), None),
    };
    let position = location.map(|at| Offsets::new(sql).character(sql, at));
    let found = what.rsplit_once("found: ").map(|(_, found)| found.trim());
    let mut error = match (error, found) {
        (ParserError::TokenizerError(_), _) => {
            let near = position.and_then(|p| rest_of_line(sql, p)).unwrap_or_default();
            let what = what.strip_prefix("Tokenizer error: ").unwrap_or(what);
            SqlError::syntax(match what {
                w if w.contains("string literal") => {
                    format!("unterminated quoted string at or near \"{near}\"")
                }
                w if w.contains("comment") => {
                    format!("unterminated /* comment at or near \"{near}\"")
                }
                w => lower_first(w),
            })
        }
        (_, Some("EOF")) => {
            let end = if end == 0 { sql.len() } else { end };
            let position = sql.get(..end).unwrap_or(sql).chars().count() + 1;
            return SqlError::syntax("syntax error at end of input")
                .position(position)
                .detail(sentence(what));
        }
        (_, Some(found)) => {
            SqlError::syntax(format!("syntax error at or near \"{found}\"")).detail(sentence(what))
        }
        (_, None) => SqlError::syntax(lower_first(what)),
    };
    error.position = position;
    error
}

fn parse_location(text: &str) -> Option<Location> {
    let (line, column) = text.split_once(", Column: ")?;
    let column = column.split(|c: char| !c.is_ascii_digit()).next()?;
    Some(Location { line: line.trim().parse().ok()?, column: column.parse().ok()? })
}

fn rest_of_line(sql: &str, position: usize) -> Option<String> {
    let rest: String = sql.chars().skip(position.saturating_sub(1)).take(40).collect();
    Some(rest.lines().next()?.to_owned())
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

fn sentence(text: &str) -> String {
    let text = text.strip_prefix("sql parser error: ").unwrap_or(text);
    format!("{text}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_split_at_its_semicolons() {
        let statements = parse("select 1; ;\n insert into t values (';') ; -- end\n").expect("ok");
        let texts: Vec<_> = statements.iter().map(Statement::sql).collect();
        assert_eq!(texts, ["select 1", "insert into t values (';')"]);
        assert!(parse(" ; -- nothing").expect("ok").is_empty());
        assert!(parse_one("").expect("ok").is_empty());
        assert_eq!(parse_one("select 1; select 2").unwrap_err().sqlstate, SqlState::SYNTAX_ERROR);
    }

    #[test]
    fn syntax_errors_say_where() {
        for (sql, message, position) in [
            ("selec 1", "syntax error at or near \"selec\"", Some(1)),
            ("select 1;\nselect (1 from t", "syntax error at or near \"from\"", Some(21)),
            ("select (1", "syntax error at end of input", Some(10)),
            ("select 'ä', 'abc", "unterminated quoted string at or near \"'abc\"", Some(13)),
            ("select 1 2", "syntax error at or near \"2\"", Some(10)),
        ] {
            let error = parse(sql).unwrap_err();
            assert_eq!(error.sqlstate, SqlState::SYNTAX_ERROR, "{sql}");
            assert_eq!((error.message.as_str(), error.position), (message, position), "{sql}");
        }
    }

    #[test]
    fn deep_statements_are_refused_before_anything_recurses() {
        let hostile = [
            format!("select {}1", "1 + ".repeat(100_000)),
            format!("select {}1{}", "(".repeat(100_000), ")".repeat(100_000)),
            format!("select {}1", "- ".repeat(100_000)),
            format!("select {}true", "not ".repeat(100_000)),
            format!("select 1{}", "::int".repeat(100_000)),
            format!("select 1{}", "[1]".repeat(100_000)),
            format!("select 1{}", " union select 1".repeat(100_000)),
            format!("select {}1{}", "case when true then ".repeat(9_999), " end".repeat(9_999)),
            format!("select 1 from t where {}a", "a = 1 or ".repeat(100_000)),
            format!("select {}", "f(".repeat(100_000)),
            format!("select * from t{}", " join t using (a)".repeat(100_000)),
            format!("{}select 1", "explain ".repeat(100_000)),
            ")".repeat(10_000),
        ];
        for sql in hostile {
            let error = parse(&sql).unwrap_err();
            let code = error.sqlstate;
            let start = &sql[..20];
            assert!(
                code == SqlState::STATEMENT_TOO_COMPLEX || code == SqlState::SYNTAX_ERROR,
                "{start}: {error:?}"
            );
        }
    }

    /// sqlparser looks ahead by parsing; nested, that must not multiply.
    #[test]
    fn nested_statements_parse_in_linear_time() {
        let nested = [
            ("f(", ")"),
            ("array[", "]"),
            ("case when ", " then 1 end"),
            ("(select ", ")"),
            ("cast(", " as int)"),
            ("exists(select ", ")"),
            ("1 in (", ")"),
            ("row(", ")"),
            ("extract(year from ", ")"),
            ("substring(", " from 1)"),
            ("trim(", ")"),
            ("position(", " in 'x')"),
            ("count(*) filter (where ", ")"),
            ("sum(1) over (order by ", ")"),
            ("array(select ", ")"),
            ("overlay(", " placing 'a' from 1)"),
        ];
        for (open, close) in nested {
            let sql = format!("select {}a{} from t", open.repeat(15), close.repeat(15));
            assert!(parse(&sql).is_ok(), "{sql}");
        }
        for (open, close) in [("(select * from ", ") x"), ("(t join ", " on true)")] {
            let sql = format!("select * from {}t{}", open.repeat(15), close.repeat(15));
            assert!(parse(&sql).is_ok(), "{sql}");
        }
    }

    #[test]
    fn wide_statements_are_accepted() {
        let rows = vec!["(1, 'a', -2 + 3)"; 5_000].join(", ");
        assert_eq!(parse(&format!("insert into t values {rows}")).expect("ok").len(), 1);
        let list = vec!["1"; 5_000].join(", ");
        assert_eq!(parse(&format!("select * from t where a in ({list})")).expect("ok").len(), 1);
    }
}
