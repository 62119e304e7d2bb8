//! Arrays as text: `{1,NULL,{"a b"}}`.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;

use super::number::is_space;
use super::pg_type::{BaseType, MAX_NUMERIC_PRECISION, PgType};
use super::text;
use super::zone::SessionFormat;
use crate::error::{SqlError, SqlState};

/// The dimensions of an array at most, as in PostgreSQL.
pub(super) const MAX_DIMENSIONS: usize = 6;

/// An array, or an element of one.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node<T> {
    Null,
    Leaf(T),
    Array(Vec<Node<T>>),
}

impl<T> Node<T> {
    /// The lengths of the dimensions; `None` if sub-arrays differ in theirs.
    pub fn dimensions(&self) -> Option<Vec<usize>> {
        let Self::Array(nodes) = self else { return Some(Vec::new()) };
        let mut inner = None;
        for node in nodes {
            let dimensions = node.dimensions()?;
            if *inner.get_or_insert_with(|| dimensions.clone()) != dimensions {
                return None;
            }
        }
        let mut dimensions = vec![nodes.len()];
        dimensions.extend(inner.unwrap_or_default());
        Some(dimensions)
    }
}

/// Parses an array of elements of a type.
pub(super) fn parse(
    element: BaseType,
    text: &str,
    session: &SessionFormat,
) -> Result<ScalarValue, SqlError> {
    let tree = tree(text).map_err(|detail| malformed(text, &detail))?;
    let element = element.plain();
    list(&tree, element, &|leaf: &String, pg_type| text::parse(pg_type, leaf, session))
}

/// Puts an array together. `make` makes an element of a type, which for `numeric` is the one that
/// all elements fit.
pub(super) fn list<T>(
    tree: &Node<T>,
    element: PgType,
    make: &dyn Fn(&T, PgType) -> Result<ScalarValue, SqlError>,
) -> Result<ScalarValue, SqlError> {
    let mut element = element;
    if element == PgType::UnboundedNumeric {
        let scale = common_scale(tree, make)?;
        element = PgType::Numeric { precision: MAX_NUMERIC_PRECISION, scale };
    }
    let Node::Array(nodes) = tree else {
        return Err(SqlError::internal("an array that isn't one"));
    };
    let mut depth = 0;
    let mut first = Some(tree);
    while let Some(Node::Array(nodes)) = first {
        depth += 1;
        first = nodes.first();
    }
    let mut inner = element.arrow_type();
    for _ in 1..depth {
        inner = DataType::new_list(inner, true);
    }
    let values = nodes
        .iter()
        .map(|node| match node {
            Node::Null => {
                ScalarValue::try_from(&inner).map_err(|error| SqlError::internal(error.to_string()))
            }
            Node::Leaf(leaf) => make(leaf, element),
            Node::Array(_) => list(node, element, make),
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(ScalarValue::List(ScalarValue::new_list(&values, &inner, true)))
}

fn common_scale<T>(
    tree: &Node<T>,
    make: &dyn Fn(&T, PgType) -> Result<ScalarValue, SqlError>,
) -> Result<i8, SqlError> {
    match tree {
        Node::Null => Ok(0),
        Node::Leaf(leaf) => match make(leaf, PgType::UnboundedNumeric)? {
            ScalarValue::Decimal128(_, _, scale) => Ok(scale),
            _ => Err(SqlError::unsupported("an array of numerics of more than 38 digits")),
        },
        Node::Array(nodes) => {
            nodes.iter().try_fold(0, |scale, node| Ok(common_scale(node, make)?.max(scale)))
        }
    }
}

fn malformed(text: &str, detail: &str) -> SqlError {
    SqlError::new(
        SqlState::INVALID_TEXT_REPRESENTATION,
        format!("malformed array literal: \"{text}\""),
    )
    .detail(detail)
}

const UNEXPECTED_END: &str = "Unexpected end of input.";
const UNEXPECTED_BRACE: &str = "Unexpected \"{\" character.";
const UNEXPECTED_ELEMENT: &str = "Unexpected array element.";

struct Parser<'a> {
    rest: &'a [u8],
    depth: usize,
}

/// Cuts the text into elements. The error is PostgreSQL's detail.
fn tree(text: &str) -> Result<Node<String>, String> {
    let mut parser = Parser { rest: text.as_bytes(), depth: 0 };
    parser.skip_blanks();
    match parser.rest.first() {
        Some(b'{') => {}
        Some(b'[') => return Err("Arrays with explicit bounds are not supported.".to_owned()),
        _ => {
            let detail = "Array value must start with \"{\" or dimension information.";
            return Err(detail.to_owned());
        }
    }
    let array = parser.array()?;
    parser.skip_blanks();
    if !parser.rest.is_empty() {
        return Err("Junk after closing right brace.".to_owned());
    }
    if array.dimensions().is_none() {
        let detail = "Multidimensional arrays must have sub-arrays with matching dimensions.";
        return Err(detail.to_owned());
    }
    Ok(array)
}

impl Parser<'_> {
    fn skip_blanks(&mut self) {
        while self.rest.first().is_some_and(|byte| is_space(*byte)) {
            self.rest = &self.rest[1..];
        }
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// From `{` to its `}`.
    fn array(&mut self) -> Result<Node<String>, String> {
        self.depth += 1;
        if self.depth > MAX_DIMENSIONS {
            return Err(format!("number of array dimensions exceeds the maximum {MAX_DIMENSIONS}"));
        }
        self.next();
        let mut nodes: Vec<Node<String>> = Vec::new();
        loop {
            self.skip_blanks();
            let node = match self.rest.first() {
                None => return Err(UNEXPECTED_END.to_owned()),
                Some(b'}') if nodes.is_empty() && self.depth == 1 => {
                    self.next();
                    break;
                }
                Some(byte @ (b'}' | b',')) => {
                    return Err(format!("Unexpected \"{}\" character.", char::from(*byte)));
                }
                Some(b'{') => self.array()?,
                Some(_) => self.element()?,
            };
            let mixed = |other: &Node<String>| {
                matches!(other, Node::Array(_)) != matches!(node, Node::Array(_))
            };
            if nodes.first().is_some_and(mixed) {
                return Err(UNEXPECTED_ELEMENT.to_owned());
            }
            nodes.push(node);
            self.skip_blanks();
            match self.next() {
                None => return Err(UNEXPECTED_END.to_owned()),
                Some(b',') => {}
                Some(b'}') => break,
                Some(b'{') => return Err(UNEXPECTED_BRACE.to_owned()),
                Some(_) => return Err(UNEXPECTED_ELEMENT.to_owned()),
            }
        }
        self.depth -= 1;
        Ok(Node::Array(nodes))
    }

    fn element(&mut self) -> Result<Node<String>, String> {
        let mut bytes = Vec::new();
        let quoted = self.rest.first() == Some(&b'"');
        // How much of an unquoted element isn't blanks at its end.
        let mut kept = 0;
        let mut escaped = false;
        if quoted {
            self.next();
        }
        loop {
            match self.rest.first() {
                None => return Err(UNEXPECTED_END.to_owned()),
                Some(b'"') if quoted => {
                    self.next();
                    break;
                }
                Some(b'"') if !quoted => return Err(UNEXPECTED_ELEMENT.to_owned()),
                Some(b'{') if !quoted => return Err(UNEXPECTED_BRACE.to_owned()),
                Some(b',' | b'}') if !quoted => break,
                Some(b'\\') => {
                    self.next();
                    bytes.push(self.next().ok_or(UNEXPECTED_END)?);
                    escaped = true;
                    kept = bytes.len();
                }
                Some(&byte) => {
                    self.next();
                    bytes.push(byte);
                    if quoted || !is_space(byte) {
                        kept = bytes.len();
                    }
                }
            }
        }
        bytes.truncate(kept);
        if !quoted && !escaped && bytes.eq_ignore_ascii_case(b"null") {
            return Ok(Node::Null);
        }
        // Cut at ASCII bytes only, so it is still UTF-8.
        String::from_utf8(bytes).map(Node::Leaf).map_err(|_| UNEXPECTED_ELEMENT.to_owned())
    }
}
