//! Arrow's types for PostgreSQL's, and back.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};

use super::pg_type::{BaseType, MAX_NUMERIC_PRECISION, PgType};

/// The key of a field's metadata that names its exact [`PgType`] where Arrow's type doesn't tell.
pub const PG_TYPE_KEY: &str = "pg_type";

/// The scale of a bare `numeric` where one has to be named: `CAST(x AS numeric)`.
const UNBOUNDED_SCALE: i8 = 10;

impl PgType {
    /// The Arrow type that holds its values.
    ///
    /// A bare `numeric` has no such type; `Decimal128(38, 10)`, as DataFusion reads it, stands for
    /// it. Literals and parameters should rather have the decimal type of their own value
    /// ([`super::text::parse`] gives it).
    #[must_use]
    pub fn arrow_type(self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int2 => DataType::Int16,
            Self::Int4 => DataType::Int32,
            Self::Int8 => DataType::Int64,
            Self::Float4 => DataType::Float32,
            Self::Float8 => DataType::Float64,
            Self::Numeric { precision, scale } => DataType::Decimal128(precision, scale),
            Self::UnboundedNumeric => DataType::Decimal128(MAX_NUMERIC_PRECISION, UNBOUNDED_SCALE),
            Self::Bytea => DataType::Binary,
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
            Self::Interval => DataType::Interval(IntervalUnit::MonthDayNano),
            Self::Uuid => DataType::FixedSizeBinary(16),
            Self::Oid
            | Self::Regclass
            | Self::Regtype
            | Self::Regproc
            | Self::Regnamespace
            | Self::Regrole
            | Self::Xid => DataType::UInt32,
            Self::Int2Vector => list_of(DataType::Int16),
            Self::OidVector => list_of(DataType::UInt32),
            Self::Array(element) => list_of(element.plain().arrow_type()),
            Self::Text
            | Self::Varchar(_)
            | Self::Char(_)
            | Self::Jsonb
            | Self::Name
            | Self::InternalChar
            | Self::NodeTree
            | Self::AclItem
            | Self::Record
            | Self::Void
            | Self::Unknown => DataType::Utf8,
        }
    }

    /// A field that holds values of the type and tells so.
    #[must_use]
    pub fn field(self, name: &str, nullable: bool) -> Field {
        let arrow_type = self.arrow_type();
        let told = Self::of_arrow(&arrow_type) == self;
        let field = Field::new(name, arrow_type, nullable);
        if told {
            return field;
        }
        field.with_metadata([(PG_TYPE_KEY.to_owned(), self.to_string())].into())
    }

    /// The type of a field of a result: what its metadata says, if that fits its Arrow type (an
    /// expression may have kept the metadata of its input), else [`Self::of_arrow`].
    #[must_use]
    pub fn of_field(field: &Field) -> Self {
        let inferred = Self::of_arrow(field.data_type());
        let told = field.metadata().get(PG_TYPE_KEY).and_then(|name| Self::from_text(name).ok());
        match told {
            Some(told) if told.fits(field.data_type()) => told,
            _ => inferred,
        }
    }

    /// Whether values of the type may lie in an array of that Arrow type.
    #[must_use]
    pub fn fits(self, data_type: &DataType) -> bool {
        use DataType as D;
        if let D::Dictionary(_, values) = data_type {
            return self.fits(values);
        }
        let own = self.arrow_type();
        let wider = matches!(
            (&own, data_type),
            (D::Utf8, D::LargeUtf8 | D::Utf8View)
                | (D::Binary, D::LargeBinary | D::BinaryView)
                | (D::List(_), D::List(_) | D::LargeList(_))
                // The aliases of oid may come as the names that they print as.
                | (D::UInt32, D::Utf8 | D::Utf8View | D::Int64)
        );
        let decimal = matches!(data_type, D::Decimal128(..) | D::Decimal256(..));
        own == *data_type || wider || (self == Self::UnboundedNumeric && decimal)
    }

    /// What PostgreSQL would call a value of that Arrow type.
    ///
    /// DataFusion's unsigned integers, small floats and so on become the next PostgreSQL type that
    /// holds them, except `UInt64`, which is how some functions count: `bigint`.
    #[must_use]
    pub fn of_arrow(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::Bool,
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => Self::Int2,
            DataType::Int32 | DataType::UInt16 => Self::Int4,
            DataType::Int64 | DataType::UInt32 | DataType::UInt64 => Self::Int8,
            DataType::Float16 | DataType::Float32 => Self::Float4,
            DataType::Float64 => Self::Float8,
            DataType::Decimal32(..)
            | DataType::Decimal64(..)
            | DataType::Decimal128(..)
            | DataType::Decimal256(..) => Self::UnboundedNumeric,
            DataType::FixedSizeBinary(16) => Self::Uuid,
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_) => Self::Bytea,
            DataType::Date32 | DataType::Date64 => Self::Date,
            DataType::Time32(_) | DataType::Time64(_) => Self::Time,
            DataType::Timestamp(_, None) => Self::Timestamp,
            DataType::Timestamp(_, Some(_)) => Self::Timestamptz,
            DataType::Interval(_) | DataType::Duration(_) => Self::Interval,
            DataType::Dictionary(_, values) => Self::of_arrow(values),
            DataType::RunEndEncoded(_, values) => Self::of_arrow(values.data_type()),
            DataType::List(element)
            | DataType::LargeList(element)
            | DataType::FixedSizeList(element, _)
            | DataType::ListView(element)
            | DataType::LargeListView(element) => match Self::of_field(element) {
                // An array of arrays is an array of more dimensions.
                Self::Array(inner) => Self::Array(inner),
                other if other.base().facts().array_oid != 0 => Self::Array(other.base()),
                _ => Self::Array(BaseType::Text),
            },
            DataType::Struct(_) => Self::Record,
            DataType::Null
            | DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Union(..)
            | DataType::Map(..) => Self::Text,
        }
    }
}

fn list_of(element: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(element, true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives_being_a_field() {
        let mut types: Vec<PgType> = BaseType::ALL.map(BaseType::plain).to_vec();
        types.extend([
            PgType::Varchar(Some(3)),
            PgType::Char(Some(7)),
            PgType::Numeric { precision: 10, scale: 2 },
            PgType::Array(BaseType::Text),
            PgType::Array(BaseType::Oid),
            PgType::Array(BaseType::Jsonb),
        ]);
        for pg_type in types {
            assert_eq!(PgType::of_field(&pg_type.field("c", true)), pg_type, "{pg_type}");
        }
    }

    #[test]
    fn metadata_that_no_longer_fits_is_ignored() {
        let field = PgType::Numeric { precision: 10, scale: 2 }.field("c", true);
        let widened = field.clone().with_data_type(DataType::Decimal128(12, 4));
        assert_eq!(PgType::of_field(&widened), PgType::UnboundedNumeric);
        let counted = field.with_data_type(DataType::Int64);
        assert_eq!(PgType::of_field(&counted), PgType::Int8);
        let viewed = PgType::Varchar(Some(3)).field("c", true).with_data_type(DataType::Utf8View);
        assert_eq!(PgType::of_field(&viewed), PgType::Varchar(Some(3)));
    }

    #[test]
    fn arrow_types_without_a_postgresql_type_get_the_nearest() {
        let pairs = [
            (DataType::UInt64, PgType::Int8),
            (DataType::UInt32, PgType::Int8),
            (DataType::Int8, PgType::Int2),
            (DataType::Utf8View, PgType::Text),
            (DataType::Null, PgType::Text),
            (DataType::Date64, PgType::Date),
            (DataType::Duration(TimeUnit::Nanosecond), PgType::Interval),
            (DataType::Timestamp(TimeUnit::Nanosecond, None), PgType::Timestamp),
            (DataType::Decimal256(76, 4), PgType::UnboundedNumeric),
            (
                DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
                PgType::Text,
            ),
            (list_of(list_of(DataType::Int64)), PgType::Array(BaseType::Int8)),
        ];
        for (data_type, expected) in pairs {
            assert_eq!(PgType::of_arrow(&data_type), expected, "{data_type}");
        }
    }
}
