//! PostgreSQL's grammar, parsed in linear time.
//!
//! sqlparser's own dialect parses each argument of a function twice where it looks for
//! `expression => value`, so that nested calls take time exponential in their depth. PostgreSQL's
//! argument names are identifiers, so one token tells.
//!
//! Two things are added. `CREATE TABLE ... (...) INTERLEAVE IN PARENT t ON DELETE CASCADE` is
//! Spanner's; it becomes options of the table, as if they stood in WITH (...). And PostgreSQL's
//! `ALTER TABLE t RESET (a, b)`, which sqlparser doesn't know, becomes SET with options that have no
//! value.

use std::any::TypeId;

use datafusion::sql::sqlparser::ast::helpers::attached_token::AttachedToken;
use datafusion::sql::sqlparser::ast::{
    AlterTable, AlterTableOperation, CreateTableOptions, Expr, Ident, ObjectNamePart, SqlOption,
    Statement,
};
use datafusion::sql::sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

use crate::ddl::{INTERLEAVE_IN_PARENT, INTERLEAVE_ON_DELETE};

const INNER: PostgreSqlDialect = PostgreSqlDialect {};

/// PostgreSQL's dialect, but for how named arguments are recognized.
#[derive(Debug)]
pub(super) struct Grammar;

macro_rules! forward {
    ($($method:ident)*) => {
        $(fn $method(&self) -> bool {
            INNER.$method()
        })*
    };
}

/// What follows CREATE.
fn create(parser: &mut Parser) -> Result<Statement, ParserError> {
    let mut statement = parser.parse_create()?;
    let Statement::CreateTable(create) = &mut statement else {
        return Ok(statement);
    };
    if !next_is(parser, "interleave") {
        return Ok(statement);
    }
    let mut options = interleave(parser)?;
    let before = std::mem::take(&mut create.table_options);
    match before {
        CreateTableOptions::With(before) => options.extend(before),
        CreateTableOptions::None => options.extend(parser.parse_options(Keyword::WITH)?),
        other => {
            create.table_options = other;
            return parser.expected_ref("end of statement", parser.peek_token_ref());
        }
    }
    create.table_options = CreateTableOptions::With(options);
    Ok(statement)
}

/// `INTERLEAVE IN PARENT t [ON DELETE {CASCADE | NO ACTION}]`
fn interleave(parser: &mut Parser) -> Result<Vec<SqlOption>, ParserError> {
    parser.next_token();
    parser.expect_keyword_is(Keyword::IN)?;
    if !next_is(parser, "parent") {
        return parser.expected_ref("PARENT", parser.peek_token_ref());
    }
    parser.next_token();
    let name = parser.parse_object_name(false)?;
    let idents = name.0.into_iter().map(|part| match part {
        ObjectNamePart::Identifier(ident) => ident,
        ObjectNamePart::Function(function) => function.name,
    });
    let option = |key: &str, value| SqlOption::KeyValue { key: Ident::new(key), value };
    let mut options =
        vec![option(INTERLEAVE_IN_PARENT, Expr::CompoundIdentifier(idents.collect()))];
    if parser.parse_keyword(Keyword::ON) {
        parser.expect_keyword_is(Keyword::DELETE)?;
        let action = if parser.parse_keyword(Keyword::CASCADE) {
            "cascade"
        } else {
            parser.expect_keywords(&[Keyword::NO, Keyword::ACTION])?;
            "no action"
        };
        options.push(option(INTERLEAVE_ON_DELETE, Expr::Identifier(Ident::new(action))));
    }
    Ok(options)
}

/// Whether the next token is this word, which is no keyword of sqlparser's.
fn next_is(parser: &Parser, word: &str) -> bool {
    matches!(
        &parser.peek_token_ref().token,
        Token::Word(next) if next.quote_style.is_none() && next.value.eq_ignore_ascii_case(word)
    )
}

/// `ALTER TABLE [IF EXISTS] [ONLY] t RESET (a, b)`
fn reset_options(parser: &mut Parser) -> Result<Statement, ParserError> {
    let alter = parser.get_current_token().clone();
    parser.expect_keywords(&[Keyword::ALTER, Keyword::TABLE])?;
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let only = parser.parse_keyword(Keyword::ONLY);
    let name = parser.parse_object_name(false)?;
    parser.expect_keyword_is(Keyword::RESET)?;
    parser.expect_token(&Token::LParen)?;
    let names = parser.parse_comma_separated(Parser::parse_identifier)?;
    parser.expect_token(&Token::RParen)?;
    let options = names.into_iter().map(SqlOption::Ident).collect();
    Ok(Statement::AlterTable(AlterTable {
        name,
        if_exists,
        only,
        operations: vec![AlterTableOperation::SetOptionsParens { options }],
        location: None,
        on_cluster: None,
        table_type: None,
        end_token: AttachedToken(alter),
    }))
}

impl Dialect for Grammar {
    fn dialect(&self) -> TypeId {
        TypeId::of::<PostgreSqlDialect>()
    }

    fn parse_statement(&self, parser: &mut Parser) -> Option<Result<Statement, ParserError>> {
        if parser.parse_keyword(Keyword::CREATE) {
            return Some(create(parser));
        }
        if parser.peek_keyword(Keyword::ALTER) {
            return parser.maybe_parse(reset_options).transpose();
        }
        None
    }

    fn supports_named_fn_args_with_expr_name(&self) -> bool {
        false
    }

    /// `name := value`, which is what PostgreSQL wrote before `name => value`.
    fn supports_named_fn_args_with_assignment_operator(&self) -> bool {
        true
    }

    fn identifier_quote_style(&self, identifier: &str) -> Option<char> {
        INNER.identifier_quote_style(identifier)
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        INNER.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        INNER.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        INNER.is_identifier_part(ch)
    }

    fn is_reserved_for_identifier(&self, keyword: Keyword) -> bool {
        INNER.is_reserved_for_identifier(keyword)
    }

    fn is_custom_operator_part(&self, ch: char) -> bool {
        INNER.is_custom_operator_part(ch)
    }

    fn get_next_precedence(&self, parser: &Parser<'_>) -> Option<Result<u8, ParserError>> {
        INNER.get_next_precedence(parser)
    }

    fn prec_value(&self, precedence: Precedence) -> u8 {
        INNER.prec_value(precedence)
    }

    forward! {
        supports_unicode_string_literal
        supports_filter_during_aggregation
        supports_group_by_expr
        allow_extract_custom
        allow_extract_single_quotes
        supports_create_index_with_clause
        supports_explain_with_utility_options
        supports_listen_notify
        supports_factorial_operator
        supports_bitwise_shift_operators
        supports_comment_on
        supports_load_extension
        supports_named_fn_args_with_colon_operator
        supports_empty_projections
        supports_nested_comments
        supports_string_escape_constant
        supports_numeric_literal_underscores
        supports_array_typedef_with_brackets
        supports_geometric_types
        supports_set_names
        supports_alter_column_type_using
        supports_notnull_operator
        supports_interval_options
        supports_insert_table_alias
        supports_create_table_like_parenthesized
        supports_select_wildcard_with_alias
        supports_comma_separated_trim
        supports_xml_expressions
        supports_comment_optimizer_hint
    }
}
