//! One client's session: messages in, results out, in the order in which they came.

use std::sync::Arc;

use bytes::BytesMut;
use futures::StreamExt;
use futures::stream::BoxStream;
use meridian_sql::arrow::array::RecordBatch;
use meridian_sql::types::{SessionFormat, TimeZone};
use meridian_sql::{
    ColumnDescription, Outcome, Prepared, ScalarValue, Series, Session, SqlError, SqlState,
};
use meridian_truetime::EnvironmentExt;
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
            let message = self.receive().await?;
            if skipping && !matches!(message, Message::Sync | Message::Terminate) {
                continue;
            }
            self.cancel.arm();
            let (simple, outcome) = match message {
                Message::Terminate => return Ok(()),
                Message::Sync => {
                    skipping = false;
                    match self.finish_series().await {
                        Ok(()) => {}
                        Err(Failure::End(end)) => return Err(end),
                        Err(Failure::Statement(error)) => self.report_error(&error),
                    }
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
                    self.report_error(&error);
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

    /// The next message. A client that leaves a transaction open for too long is sent away.
    async fn receive(&mut self) -> Result<Message, End> {
        let longest = self.longest_message;
        let idle = self.session.idle_timeout();
        let env = self.wire.env();
        let message = self.wire.receive(|input| Message::decode(input, longest));
        let Some(idle) = idle else { return message.await };
        env.timeout(idle, message).await.unwrap_or_else(|_| {
            Err(End::fatal(
                SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                "terminating connection due to idle-in-transaction timeout",
            ))
        })
    }

    /// Tells the client of an error, and the session: its transaction has failed, and with it end the
    /// portals that belong to it.
    fn report_error(&mut self, error: &SqlError) {
        self.session.fail(error);
        self.forget_portals();
        self.report_notices();
        encode_error(Severity::Error, error, &mut self.wire.output);
    }

    /// Commits what the statements up to here have done together, if nobody said BEGIN.
    async fn finish_series(&mut self) -> Result<(), Failure> {
        let work = self.session.finish();
        let finished = self.wire.run(&self.cancel, work).await;
        self.uninterrupted(finished)??;
        Ok(())
    }

    /// Runs the statements of a simple query, up to the first that fails.
    async fn query(&mut self, sql: &str) -> Result<(), Failure> {
        self.forget_unnamed();
        let statements = self.session.parse(sql)?;
        if statements.is_empty() {
            return self.put(Backend::EmptyQueryResponse(EmptyQueryResponse::new()));
        }
        let series = if statements.len() == 1 { Series::Alone } else { Series::Part };
        for (place, statement) in statements.iter().enumerate() {
            let prepared = self.session.prepare(statement, &[]);
            let prepared = self.wire.run(&self.cancel, prepared).await;
            let prepared = self.uninterrupted(prepared)??;
            if !prepared.parameters().is_empty() {
                let error =
                    SqlError::new(SqlState::UNDEFINED_PARAMETER, "there is no parameter $1");
                return Err(error.into());
            }
            let last = place + 1 == statements.len();
            self.simple_statement(&prepared, series, last).await?;
        }
        Ok(())
    }

    /// The last statement is done when what all of them did is committed.
    async fn simple_statement(
        &mut self,
        prepared: &Prepared,
        series: Series,
        last: bool,
    ) -> Result<(), Failure> {
        match self.execute(prepared, Vec::new(), series).await? {
            Outcome::Rows { columns, batches, tag, counted } => {
                rows::encode_description(&columns, &[], &mut self.wire.output)?;
                let mut source = RowSource::new(columns, batches, tag, counted);
                self.send_rows(&mut source, &[], None).await?;
                if last {
                    self.finish_series().await?;
                }
                self.report_notices();
                self.complete(source.tag())
            }
            Outcome::Done { tag } => {
                if last {
                    self.finish_series().await?;
                }
                self.complete(tag)
            }
            Outcome::Empty => self.put(Backend::EmptyQueryResponse(EmptyQueryResponse::new())),
        }
    }

    /// Runs a statement up to its first rows.
    pub(super) async fn execute(
        &mut self,
        prepared: &Prepared,
        parameters: Vec<ScalarValue>,
        series: Series,
    ) -> Result<Outcome, Failure> {
        let work = self.session.execute(prepared, parameters, series);
        let outcome = self.wire.run(&self.cancel, work).await;
        self.report_notices();
        Ok(self.uninterrupted(outcome)??)
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
                match self.uninterrupted(next)? {
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

    /// A wait's result; an interruption becomes the reason to stop.
    pub(super) fn uninterrupted<T>(&mut self, waited: Result<T, Interrupt>) -> Result<T, Failure> {
        waited.map_err(|interrupt| match interrupt {
            Interrupt::Canceled => Failure::Statement(
                self.session.interrupted("canceling statement due to user request"),
            ),
            Interrupt::End(end) => Failure::End(end),
        })
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

fn no_function_calls() -> SqlError {
    SqlError::unsupported("function call messages are not supported")
        .hint("Call the function in a SELECT.")
}

fn put(message: Backend, output: &mut BytesMut) -> Result<(), SqlError> {
    message.encode(output).map_err(|error| {
        SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, format!("message not sent: {error}"))
    })
}
