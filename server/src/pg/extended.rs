//! The extended protocol: prepared statements and portals.
//!
//! A portal runs when it is first executed, and keeps its rows until they are fetched, it is
//! closed, or the transaction that it belongs to ends; outside of a transaction block that is at
//! the next Sync. A statement whose Sync has come already is a transaction of its own; else those up
//! to the Sync are one.

use std::collections::BTreeMap;

use bytes::Bytes;
use meridian_sql::types::{SessionFormat, binary, text};
use meridian_sql::{
    Outcome, PgType, Prepared, ScalarValue, Series, SqlError, SqlState, TransactionStatus,
};
use pgwire::messages::PgWireBackendMessage as Backend;
use pgwire::messages::data::{NoData, ParameterDescription};
use pgwire::messages::extendedquery::{
    BindComplete, CloseComplete, ParseComplete, PortalSuspended,
};
use pgwire::messages::response::EmptyQueryResponse;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{Connection, Failure, RowSource};
use super::error::bad_text;
use super::frontend::{Bind, Message, Target, sync_follows};
use super::rows::{self, Format};

/// How many prepared statements, and how many portals, a session may keep.
const MAX_KEPT: usize = 10_000;

/// A session's prepared statements by name.
#[derive(Default)]
pub struct Statements(BTreeMap<String, Prepared>);

/// A session's portals by name.
#[derive(Default)]
pub struct Portals(BTreeMap<String, Portal>);

struct Portal {
    statement: Prepared,
    formats: Vec<Format>,
    state: State,
}

enum State {
    /// Not yet executed.
    Bound(Vec<ScalarValue>),
    /// Executed, with rows that may not all be sent.
    Rows(Box<RowSource>),
    /// Executed; there is nothing more.
    Done,
}

impl<R, W> Connection<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    /// Carries out a message of the extended protocol.
    pub(super) async fn extended(&mut self, message: Message) -> Result<(), Failure> {
        match message {
            Message::Parse { name, sql, types } => self.parse(name, &sql, &types).await,
            Message::Bind(bind) => self.bind(bind),
            Message::Describe(Target::Statement(name)) => self.describe_statement(&name),
            Message::Describe(Target::Portal(name)) => self.describe_portal(&name),
            Message::Execute { portal, limit } => self.execute_portal(&portal, limit).await,
            Message::Close(target) => {
                match target {
                    Target::Statement(name) => drop(self.statements.0.remove(&name)),
                    Target::Portal(name) => drop(self.portals.0.remove(&name)),
                }
                self.put(Backend::CloseComplete(CloseComplete::new()))
            }
            Message::Flush => Ok(self.wire.flush().await?),
            // COPY's messages outside of a COPY are ignored, as the protocol says.
            _ => Ok(()),
        }
    }

    /// At Sync: outside of a transaction block every portal ends.
    pub(super) fn end_of_series(&mut self) {
        if self.session.transaction_status() == TransactionStatus::Idle {
            self.portals.0.clear();
        }
    }

    /// A transaction has failed: what it was about to send is gone.
    pub(super) fn forget_portals(&mut self) {
        self.portals.0.clear();
    }

    /// A simple query ends what has no name.
    pub(super) fn forget_unnamed(&mut self) {
        self.statements.0.remove("");
        self.portals.0.remove("");
    }

    async fn parse(&mut self, name: String, sql: &str, types: &[u32]) -> Result<(), Failure> {
        if name.is_empty() {
            self.statements.0.remove("");
        } else if self.statements.0.contains_key(&name) {
            return Err(SqlError::new(
                SqlState::DUPLICATE_PREPARED_STATEMENT,
                format!("prepared statement \"{name}\" already exists"),
            )
            .into());
        }
        full(self.statements.0.len(), "prepared statements")?;
        let types: Vec<_> = types.iter().map(|oid| type_of(*oid)).collect::<Result<_, _>>()?;
        let statement = self.session.parse_one(sql)?;
        let prepared = self.session.prepare(&statement, &types);
        let prepared = {
            let prepared = self.wire.run(&self.cancel, prepared).await;
            self.uninterrupted(prepared)??
        };
        self.statements.0.insert(name, prepared);
        self.put(Backend::ParseComplete(ParseComplete::new()))
    }

    fn bind(&mut self, bind: Bind) -> Result<(), Failure> {
        let statement = self.statement(&bind.statement)?.clone();
        if !bind.portal.is_empty() && self.portals.0.contains_key(&bind.portal) {
            return Err(SqlError::new(
                SqlState::DUPLICATE_CURSOR,
                format!("cursor \"{}\" already exists", bind.portal),
            )
            .into());
        }
        full(self.portals.0.len(), "portals")?;
        let parameters = self.decode_parameters(&bind, statement.parameters())?;
        let columns = statement.columns().map_or(0, |columns| columns.len());
        let formats = Format::spread(&bind.result_formats, columns, "result")?;
        let state = State::Bound(parameters);
        self.portals.0.insert(bind.portal, Portal { statement, formats, state });
        self.put(Backend::BindComplete(BindComplete::new()))
    }

    fn decode_parameters(
        &self,
        bind: &Bind,
        types: &[PgType],
    ) -> Result<Vec<ScalarValue>, SqlError> {
        if bind.parameters.len() != types.len() {
            return Err(SqlError::new(
                SqlState::PROTOCOL_VIOLATION,
                format!(
                    "bind message supplies {} parameters, but prepared statement \"{}\" requires \
                     {}",
                    bind.parameters.len(),
                    bind.statement,
                    types.len()
                ),
            ));
        }
        let formats = Format::spread(&bind.parameter_formats, types.len(), "parameter")?;
        let values = bind.parameters.iter().zip(types).zip(formats).enumerate();
        let session = self.session_format()?;
        let decode =
            |(i, ((value, pg_type), format)): (usize, ((&Option<Bytes>, &PgType), Format))| {
                decode_value(value.as_deref(), *pg_type, format, &session).map_err(
                    |error: SqlError| error.context(format!("portal parameter ${}", i + 1)),
                )
            };
        values.map(decode).collect()
    }

    fn describe_statement(&mut self, name: &str) -> Result<(), Failure> {
        let statement = self.statement(name)?.clone();
        let oids = statement.parameters().iter().map(|pg_type| pg_type.oid()).collect();
        self.put(Backend::ParameterDescription(ParameterDescription::new(oids)))?;
        self.describe_columns(&statement, &[])
    }

    fn describe_portal(&mut self, name: &str) -> Result<(), Failure> {
        let portal = self.portals.0.get(name).ok_or_else(|| no_portal(name))?;
        let (statement, formats) = (portal.statement.clone(), portal.formats.clone());
        self.describe_columns(&statement, &formats)
    }

    fn describe_columns(
        &mut self,
        statement: &Prepared,
        formats: &[Format],
    ) -> Result<(), Failure> {
        match statement.columns() {
            Some(columns) => Ok(rows::encode_description(columns, formats, &mut self.wire.output)?),
            None => self.put(Backend::NoData(NoData::new())),
        }
    }

    async fn execute_portal(&mut self, name: &str, limit: i32) -> Result<(), Failure> {
        // Taken out while it runs: a portal that fails is gone.
        let mut portal = self.portals.0.remove(name).ok_or_else(|| no_portal(name))?;
        self.run_portal(name, &mut portal, u64::try_from(limit).ok().filter(|n| *n > 0)).await?;
        self.portals.0.insert(name.to_owned(), portal);
        Ok(())
    }

    async fn run_portal(
        &mut self,
        name: &str,
        portal: &mut Portal,
        limit: Option<u64>,
    ) -> Result<(), Failure> {
        if let State::Bound(parameters) = &mut portal.state {
            let parameters = std::mem::take(parameters);
            portal.state = State::Done;
            let alone = sync_follows(&self.wire.input);
            let series = if alone { Series::Alone } else { Series::Part };
            match self.execute(&portal.statement, parameters, series).await? {
                Outcome::Rows { columns, batches, tag, counted } => {
                    let source = RowSource::new(columns, batches, tag, counted);
                    portal.state = State::Rows(Box::new(source));
                }
                Outcome::Done { tag } => return self.complete(tag),
                Outcome::Empty => {
                    return self.put(Backend::EmptyQueryResponse(EmptyQueryResponse::new()));
                }
            }
        }
        match &mut portal.state {
            State::Rows(source) => {
                if self.send_rows(source, &portal.formats, limit).await? {
                    self.complete(source.tag())
                } else {
                    self.put(Backend::PortalSuspended(PortalSuspended::new()))
                }
            }
            State::Bound(_) | State::Done => Err(SqlError::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("portal \"{name}\" cannot be run"),
            )
            .into()),
        }
    }

    fn statement(&self, name: &str) -> Result<&Prepared, SqlError> {
        self.statements.0.get(name).ok_or_else(|| {
            let message = if name.is_empty() {
                "unnamed prepared statement does not exist".to_owned()
            } else {
                format!("prepared statement \"{name}\" does not exist")
            };
            SqlError::new(SqlState::INVALID_SQL_STATEMENT_NAME, message)
        })
    }
}

fn no_portal(name: &str) -> SqlError {
    let message = format!("portal \"{name}\" does not exist");
    SqlError::new(SqlState::INVALID_CURSOR_NAME, message)
}

fn full(kept: usize, what: &str) -> Result<(), SqlError> {
    if kept < MAX_KEPT {
        return Ok(());
    }
    let message = format!("a session can keep at most {MAX_KEPT} {what}");
    Err(SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
        .hint("Close those that are no longer needed."))
}

/// The type that a client gives a parameter; `None` if it leaves that to the server.
fn type_of(oid: u32) -> Result<Option<PgType>, SqlError> {
    if oid == 0 {
        return Ok(None);
    }
    PgType::from_oid(oid, -1).map(Some).ok_or_else(|| {
        let message = format!("type with OID {oid} does not exist");
        SqlError::new(SqlState::UNDEFINED_OBJECT, message)
    })
}

fn decode_value(
    value: Option<&[u8]>,
    pg_type: PgType,
    format: Format,
    session: &SessionFormat,
) -> Result<ScalarValue, SqlError> {
    let Some(bytes) = value else {
        return ScalarValue::try_from(&pg_type.arrow_type())
            .map_err(|error| SqlError::internal(error.to_string()));
    };
    match format {
        Format::Binary => binary::decode(pg_type, bytes),
        Format::Text => {
            let value = std::str::from_utf8(bytes)
                .map_err(|error| bad_text(bytes.get(error.valid_up_to()..).unwrap_or_default()))?;
            text::parse(pg_type, value, session)
        }
    }
}
