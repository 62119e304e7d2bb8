//! One client's session: messages in, results out, in the order in which they came.

use std::sync::Arc;

use bytes::BytesMut;
use futures::StreamExt;
use futures::stream::BoxStream;
use meridian_sql::arrow::array::RecordBatch;
use meridian_sql::types::{SessionFormat, TimeZone};
use meridian_sql::{
    ColumnDescription, Outcome, Prepared, ScalarValue, Session, SqlError, SqlState,
};
use pgwire::messages::PgWireBackendMessage as Backend;
use pgwire::messages::response::{
    CommandComplete, EmptyQueryResponse, ReadyForQuery, TransactionStatus,
};
use pgwire::messages::startup::ParameterStatus;
use tokio::io::{AsyncRead, AsyncWrite};

use super::cancel::Cancel;
use super::error::{End, Severity, bad_text, encode_error, encode_notice};
use super::extended::{Portals, Statements};
use super::frontend::Message;
use super::rows::{self, Format};
use super::wire::{Interrupt, Wire};

/// Why a message wasn't carried out.
#[derive(Debug)]
pub enum Failure {
    /// The client is told and goes on.
    Statement(SqlError),
    /// The session ends.
    End(End),
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::Statement(error)
    }
}

impl From<End> for Failure {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

/// A session and its connection.
pub struct Connection<R, W> {
    pub(super) wire: Wire<R, W>,
    pub(super) session: Session,
    pub(super) cancel: Arc<Cancel>,
    pub(super) statements: Statements,
    pub(super) portals: Portals,
    longest_message: usize,
}

impl<R, W> Connection<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    /// A session that was just accepted.
    pub fn new(
        wire: Wire<R, W>,
        session: Session,
        cancel: Arc<Cancel>,
        longest_message: usize,
    ) -> Self {
        let (statements, portals) = (Statements::default(), Portals::default());
        Self { wire, session, cancel, statements, portals, longest_message }
    }

    /// Serves the client to the end of its session.
    pub async fn serve(mut self) {
        let end = match self.converse().await {
            Ok(()) => End::Gone,
            Err(end) => end,
        };
        // What the session holds is given back before the client's goodbye is waited for.
        let Self { wire, session, portals, .. } = self;
        drop((session, portals));
        wire.close(end).await;
    }

    async fn converse(&mut self) -> Result<(), End> {
        self.ready().await?;
        // After an error in the extended protocol: messages are skipped until the next Sync.
        let mut skipping = false;
        loop {
            let longest = self.longest_message;
            let message = self.wire.receive(|input| Message::decode(input, longest)).await?;
            if skipping && !matches!(message, Message::Sync | Message::Terminate) {
                continue;
            }
            self.cancel.arm();
            let (simple, outcome) = match message {
                Message::Terminate => return Ok(()),
                Message::Sync => {
                    skipping = false;
                    self.end_of_series();
                    self.ready().await?;
                    continue;
                }
                Message::Query(sql) => (true, self.query(&sql).await),
                Message::FunctionCall => (true, Err(no_function_calls().into())),
                Message::NotUtf8 { simple, bytes } => (simple, Err(bad_text(&bytes).into())),
                other => (false, self.extended(other).await),
            };
            match outcome {
                Ok(()) => {}
                Err(Failure::End(end)) => return Err(end),
                Err(Failure::Statement(error)) => {
                    self.report_notices();
                    encode_error(Severity::Error, &error, &mut self.wire.output);
                    skipping = !simple;
                }
            }
            if simple {
                self.ready().await?;
            } else {
                self.wire.flush_if_long().await?;
            }
        }
    }

    /// Runs the statements of a simple query, up to the first that fails.
    async fn query(&mut self, sql: &str) -> Result<(), Failure> {
        self.forget_unnamed();
        let statements = self.session.parse(sql)?;
        if statements.is_empty() {
            return self.put(Backend::EmptyQueryResponse(EmptyQueryResponse::new()));
        }
        for statement in &statements {
            let prepared = self.session.prepare(statement, &[]);
            let prepared = uninterrupted(self.wire.run(&self.cancel, prepared).await)??;
            if !prepared.parameters().is_empty() {
                let error =
                    SqlError::new(SqlState::UNDEFINED_PARAMETER, "there is no parameter $1");
                return Err(error.into());
            }
            self.simple_statement(&prepared).await?;
        }
        Ok(())
    }

    async fn simple_statement(&mut self, prepared: &Prepared) -> Result<(), Failure> {
        match self.execute(prepared, Vec::new()).await? {
            Outcome::Rows { columns, batches, tag, counted } => {
                rows::encode_description(&columns, &[], &mut self.wire.output)?;
                let mut source = RowSource::new(columns, batches, tag, counted);
                self.send_rows(&mut source, &[], None).await?;
                self.report_notices();
                self.complete(source.tag())
            }
            Outcome::Done { tag } => self.complete(tag),
            Outcome::Empty => self.put(Backend::EmptyQueryResponse(EmptyQueryResponse::new())),
        }
    }

    /// Runs a statement up to its first rows.
    pub(super) async fn execute(
        &mut self,
        prepared: &Prepared,
        parameters: Vec<ScalarValue>,
    ) -> Result<Outcome, Failure> {
        let work = self.session.execute(prepared, parameters);
        let outcome = self.wire.run(&self.cancel, work).await;
        self.report_notices();
        match outcome {
            // A statement without a result writes, and its write may be on its way.
            Err(Interrupt::Canceled) if prepared.columns().is_none() => Err(in_doubt().into()),
            outcome => Ok(uninterrupted(outcome)??),
        }
    }

    /// Sends up to `limit` rows; whether that were all that are left.
    pub(super) async fn send_rows(
        &mut self,
        source: &mut RowSource,
        formats: &[Format],
        limit: Option<u64>,
    ) -> Result<bool, Failure> {
        let session_format = self.session_format()?;
        source.sent = 0;
        while limit.is_none_or(|limit| source.sent < limit) {
            let Some((batch, row)) = &mut source.current else {
                let next = self.wire.run(&self.cancel, source.batches.next()).await;
                match uninterrupted(next)? {
                    None => return Ok(true),
                    Some(batch) => source.current = Some((batch?, 0)),
                }
                continue;
            };
            if *row == batch.num_rows() {
                source.current = None;
                continue;
            }
            let output = &mut self.wire.output;
            rows::encode_row(batch, *row, &source.columns, formats, &session_format, output)?;
            *row += 1;
            source.sent += 1;
            self.wire.flush_if_long().await?;
        }
        Ok(false)
    }

    /// Says that a statement is done.
    pub(super) fn complete(&mut self, tag: String) -> Result<(), Failure> {
        self.put(Backend::CommandComplete(CommandComplete::new(tag)))
    }

    /// Appends a message to the output.
    pub(super) fn put(&mut self, message: Backend) -> Result<(), Failure> {
        put(message, &mut self.wire.output)?;
        Ok(())
    }

    /// How values are written as text.
    pub(super) fn session_format(&self) -> Result<SessionFormat, SqlError> {
        Ok(SessionFormat { time_zone: TimeZone::parse(self.session.setting("TimeZone")?)? })
    }

    fn report_notices(&mut self) {
        for notice in self.session.take_notices() {
            encode_notice(&notice, &mut self.wire.output);
        }
    }

    /// Tells the client that it has the word, and sends everything.
    async fn ready(&mut self) -> Result<(), End> {
        self.report_notices();
        for (name, value) in self.session.take_parameter_changes() {
            let status = ParameterStatus::new(name, value);
            put(Backend::ParameterStatus(status), &mut self.wire.output).map_err(End::Fatal)?;
        }
        let ready = ReadyForQuery::new(self.status());
        put(Backend::ReadyForQuery(ready), &mut self.wire.output).map_err(End::Fatal)?;
        self.wire.flush().await
    }

    fn status(&self) -> TransactionStatus {
        match self.session.transaction_status() {
            meridian_sql::TransactionStatus::Idle => TransactionStatus::Idle,
            meridian_sql::TransactionStatus::InTransaction => TransactionStatus::Transaction,
            meridian_sql::TransactionStatus::Failed => TransactionStatus::Error,
        }
    }
}

/// A statement's rows on their way to the client.
pub struct RowSource {
    columns: Arc<[ColumnDescription]>,
    batches: BoxStream<'static, Result<RecordBatch, SqlError>>,
    tag: &'static str,
    /// Whether the number of rows belongs to the tag.
    counted: bool,
    /// The batch being sent, and its next row.
    current: Option<(RecordBatch, usize)>,
    /// How many rows the present Execute has sent.
    sent: u64,
}

impl RowSource {
    /// Rows of which none was sent.
    pub fn new(
        columns: Arc<[ColumnDescription]>,
        batches: BoxStream<'static, Result<RecordBatch, SqlError>>,
        tag: &'static str,
        counted: bool,
    ) -> Self {
        Self { columns, batches, tag, counted, current: None, sent: 0 }
    }

    /// What the client is told when they are all sent.
    pub fn tag(&self) -> String {
        if self.counted { format!("{} {}", self.tag, self.sent) } else { self.tag.to_owned() }
    }
}

/// A wait's result; an interruption becomes the reason to stop.
pub fn uninterrupted<T>(waited: Result<T, Interrupt>) -> Result<T, Failure> {
    waited.map_err(|interrupt| match interrupt {
        Interrupt::Canceled => Failure::Statement(SqlError::new(
            SqlState::QUERY_CANCELED,
            "canceling statement due to user request",
        )),
        Interrupt::End(end) => Failure::End(end),
    })
}

fn in_doubt() -> SqlError {
    let message = "canceling statement due to user request; whether it took effect is unknown";
    SqlError::new(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
        .hint("Read what it would have written before trying it again.")
}

fn no_function_calls() -> SqlError {
    SqlError::unsupported("function call messages are not supported")
        .hint("Call the function in a SELECT.")
}

fn put(message: Backend, output: &mut BytesMut) -> Result<(), SqlError> {
    message.encode(output).map_err(|error| {
        SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("message not sent: {error}"))
    })
}
