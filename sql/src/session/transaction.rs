//! A session's transactions: BEGIN to COMMIT, and those that nobody has begun.
//!
//! # What is promised
//!
//! As in PostgreSQL (its manual, chapter 13.2 and the commands' pages; chapter 55.2.2.1 for series of
//! statements):
//!
//! * Outside of a transaction block, a statement that comes alone is a transaction, which the server
//!   tries again when it loses a conflict before anything was sent. Several statements of one message,
//!   or of one series up to a Sync, are one transaction together.
//! * A statement that fails leaves no trace. After it a block refuses everything but its end, or
//!   ROLLBACK TO a savepoint.
//! * Every level of isolation is accepted, and serializable is what is given.
//!
//! A read-write transaction reads under locks and keeps its writes here until the commit
//! ([`crate::tablets::Transaction`]); one that is READ ONLY, and a SELECT that comes alone, reads at
//! one timestamp and holds nobody up.
//!
//! # Caveats
//!
//! * ROLLBACK TO takes changes back, but gives no locks back; and what a conflict has cost (40001), only
//!   ROLLBACK cures. The session's next transaction is then as old as the one that failed, so that it
//!   wins some day.
//! * Changes of the catalog are no part of a block yet: they are refused there, and in a series they
//!   stand alone.

use std::sync::Arc;
use std::time::Duration;

use meridian_truetime::Timestamp;
use meridian_txn::locks::Age;
use meridian_txn::{CommitReport, ReadAt, Savepoint, Wait};

use super::settings::Settings;
use super::staleness::ReadStaleness;
use super::{Notice, Outcome, Session, TransactionStatus};
use crate::error::{SqlError, SqlState};
use crate::plan::control::{Control, Modes};
use crate::plan::errors::txn_error;
use crate::scan::Reads;
use crate::tablets::Transaction;

/// A transaction of several statements.
#[derive(Debug)]
pub(super) struct Block {
    /// Nobody said BEGIN: it ends with its series of statements.
    implicit: bool,
    read_only: bool,
    stage: Stage,
    work: Work,
    savepoints: Vec<Point>,
    /// `now()`.
    pub(super) began: Timestamp,
    /// What ROLLBACK goes back to.
    settings: Settings,
}

/// How far a block has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No statement has used it.
    Fresh,
    Used,
    /// A statement has failed.
    Failed,
}

/// What a block reads and writes with.
#[derive(Debug)]
enum Work {
    /// Nothing so far.
    None,
    Writes(Arc<dyn Transaction>),
    /// How everything is read.
    Reads(Reads),
}

#[derive(Debug)]
struct Point {
    name: String,
    /// None: there was no transaction yet.
    at: Option<Savepoint>,
    settings: Settings,
}

/// How a statement reaches the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// It is all that its message, or series of messages, holds.
    Alone,
    /// Others may belong to it.
    Part,
}

impl Session {
    /// Whether a transaction block is open.
    #[must_use]
    pub fn transaction_status(&self) -> TransactionStatus {
        match &self.block {
            Some(Block { stage: Stage::Failed, .. }) => TransactionStatus::Failed,
            Some(Block { implicit: false, .. }) => TransactionStatus::InTransaction,
            _ => TransactionStatus::Idle,
        }
    }

    /// Refuses what a failed transaction refuses.
    pub(super) fn check_not_failed(&self) -> Result<(), SqlError> {
        match &self.block {
            Some(Block { stage: Stage::Failed, .. }) => Err(SqlError::new(
                SqlState::IN_FAILED_SQL_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            )),
            _ => Ok(()),
        }
    }

    /// A message failed. What it belongs to is undone: all of a series of statements, and in a block
    /// everything, unless it has a savepoint to go back to.
    pub fn fail(&mut self, error: &SqlError) {
        let Some(block) = &mut self.block else { return };
        if let Work::Writes(txn) = &block.work
            && error.sqlstate == SqlState::SERIALIZATION_FAILURE
        {
            self.retries = Some(txn.age());
        }
        if block.implicit {
            self.roll_back();
        } else {
            block.stage = Stage::Failed;
            if block.savepoints.is_empty() {
                self.give_up_work();
            }
        }
    }

    /// A series of statements is at its end: what nobody has begun is committed.
    ///
    /// # Errors
    /// As COMMIT.
    pub async fn finish(&mut self) -> Result<(), SqlError> {
        match &self.block {
            Some(Block { implicit: true, .. }) => self.commit().await,
            _ => Ok(()),
        }
    }

    /// What to tell of a statement, or an end of a series, that was dropped where it stood: that it
    /// was canceled, unless it was about to commit.
    pub fn interrupted(&mut self, why: &str) -> SqlError {
        if !std::mem::take(&mut self.committing) {
            return SqlError::new(SqlState::QUERY_CANCELED, why);
        }
        let message = format!("{why}; whether it took effect is unknown");
        SqlError::new(SqlState::TRANSACTION_RESOLUTION_UNKNOWN, message)
            .hint("Read what it would have written before trying it again.")
    }

    /// Makes sure that there is a transaction of several statements.
    pub(super) fn open_series(&mut self) {
        if self.block.is_none() {
            self.block = Some(self.new_block(true, &Modes::default()));
        }
    }

    fn new_block(&self, implicit: bool, modes: &Modes) -> Block {
        let default = self.settings.is_on("default_transaction_read_only");
        Block {
            implicit,
            read_only: modes.read_only.unwrap_or(default),
            stage: Stage::Fresh,
            work: Work::None,
            savepoints: Vec::new(),
            began: self.engine.tablets.now().middle(),
            settings: self.settings.clone(),
        }
    }

    /// A statement is about to use the transaction of the block, if there is one.
    pub(super) fn use_block(&mut self) {
        let strong = self.strong();
        let Some(block) = &mut self.block else { return };
        block.stage = Stage::Used;
        let seen = self.high_water.get();
        if let Work::None = block.work {
            block.work = if block.read_only {
                let now = self.engine.tablets.now().earliest;
                Work::Reads(match self.settings.read_staleness() {
                    ReadStaleness::Strong => Reads::At(ReadAt::Exact(strong.max(seen))),
                    ReadStaleness::Exact(by) => Reads::Stale(now.minus(by)),
                    ReadStaleness::Max(by) => Reads::Stale(now.minus(by).max(seen)),
                })
            } else {
                let age = self.retries.take();
                Work::Writes(self.engine.tablets.begin(age, self.settings.protocol(), seen))
            };
        }
    }

    /// The read-write transaction that statements belong to.
    pub(crate) fn block_txn(&self) -> Option<&Arc<dyn Transaction>> {
        match &self.block.as_ref()?.work {
            Work::Writes(txn) => Some(txn),
            Work::None | Work::Reads(_) => None,
        }
    }

    /// How the block's transaction reads, if it only reads.
    pub(super) fn block_reads(&self) -> Option<Reads> {
        match &self.block.as_ref()?.work {
            Work::Reads(reads) => Some(reads.clone()),
            Work::None | Work::Writes(_) => None,
        }
    }

    /// Refuses to write in a transaction that only reads.
    pub(crate) fn check_may_write(&self, what: &str) -> Result<(), SqlError> {
        let read_only = match &self.block {
            Some(block) => block.read_only,
            None => self.settings.is_on("default_transaction_read_only"),
        };
        if !read_only {
            return Ok(());
        }
        let message = format!("cannot execute {what} in a read-only transaction");
        Err(SqlError::new(SqlState::READ_ONLY_SQL_TRANSACTION, message))
    }

    /// Refuses what can't be undone, in a block; commits a series before it.
    pub(super) async fn stand_alone(&mut self, what: &str) -> Result<(), SqlError> {
        self.check_outside(what)?;
        self.finish().await
    }

    /// Refuses what can't be undone, in a block.
    pub(super) fn check_outside(&self, what: &str) -> Result<(), SqlError> {
        if self.block.as_ref().is_some_and(|block| !block.implicit) {
            let message = format!("{what} cannot run inside a transaction block");
            return Err(SqlError::new(SqlState::ACTIVE_SQL_TRANSACTION, message));
        }
        Ok(())
    }

    /// `SHOW meridian.last_commit`: when the session's last commit was, and where its time went.
    pub(super) fn shown_commit(&self) -> String {
        let Some((protocol, report)) = &self.last_commit else { return String::new() };
        let CommitReport { at, epsilon, participants, gateway, phases, notify } = report;
        let name = protocol.name();
        let at = if *at == Timestamp::MIN { "null".to_owned() } else { format!("\"{at}\"") };
        let ms = |duration: &Duration| format!("{:.3}", duration.as_secs_f64() * 1_000.0);
        let fields = [
            ("timestamp", at),
            ("protocol", format!("\"{name}\"")),
            ("participants", participants.to_string()),
            ("epsilon_ms", ms(epsilon)),
            ("gateway_ms", ms(gateway)),
            ("lock_wait_ms", ms(&phases.locks)),
            ("prepare_ms", ms(&phases.prepare)),
            ("replicate_ms", ms(&phases.replicate)),
            ("commit_wait_ms", ms(&phases.wait)),
            ("notify_ms", ms(notify)),
        ];
        let fields = fields.map(|(name, value)| format!("\"{name}\": {value}"));
        format!("{{{}}}", fields.join(", "))
    }

    /// How long a statement waits for locks.
    pub(crate) fn lock_wait(&self) -> Wait {
        self.settings.lock_timeout().map_or(Wait::Forever, Wait::For)
    }

    /// Begins a transaction for one statement, as old as an earlier attempt.
    pub(crate) fn begin_alone(&self, age: Option<Age>) -> Arc<dyn Transaction> {
        let txn = self.engine.tablets.begin(age, self.settings.protocol(), self.high_water.get());
        txn.set_wait(self.lock_wait());
        txn
    }

    /// Commits a transaction; what it has seen, the session has seen.
    pub(crate) async fn commit_txn(
        &mut self,
        txn: &dyn Transaction,
    ) -> Result<(), meridian_txn::TxnError> {
        self.committing = true;
        let committed = txn.commit().await;
        self.committing = false;
        self.high_water.raise(txn.seen());
        self.high_water.raise(committed?);
        self.last_commit = Some((self.settings.protocol(), txn.report()));
        Ok(())
    }

    /// Ends the block's transaction without effect; the block stays.
    fn give_up_work(&mut self) {
        let Some(block) = &mut self.block else { return };
        if let Work::Writes(txn) = std::mem::replace(&mut block.work, Work::None) {
            txn.roll_back();
            self.high_water.raise(txn.seen());
        }
    }

    fn roll_back(&mut self) {
        self.give_up_work();
        if let Some(block) = self.block.take() {
            self.restore(block.settings);
        }
    }

    async fn commit(&mut self) -> Result<(), SqlError> {
        let Some(Block { work, settings, .. }) = self.block.take() else { return Ok(()) };
        if let Work::Writes(txn) = work {
            txn.set_wait(self.lock_wait());
            let committed = self.commit_txn(&*txn).await;
            if let Err(error) = committed {
                if error == meridian_txn::TxnError::Conflict {
                    self.retries = Some(txn.age());
                }
                self.restore(settings);
                return Err(txn_error(&error));
            }
        }
        let mut settings = self.settings.clone();
        settings.end_local();
        self.restore(settings);
        Ok(())
    }

    /// Puts settings in place of the present ones; the client hears of those that it is told.
    fn restore(&mut self, settings: Settings) {
        if self.settings == settings {
            return;
        }
        let before = self.settings.reported();
        self.settings = settings;
        let changed = self.settings.reported().into_iter().zip(before);
        self.changes.extend(changed.filter(|(now, before)| now != before).map(|(now, _)| now));
        self.epoch += 1;
    }

    /// Runs a statement about the transaction that it stands in.
    pub(super) async fn control(&mut self, control: &Control) -> Result<Outcome, SqlError> {
        match control {
            Control::Commit { .. } | Control::RollBack { .. } | Control::RollBackTo(_) => {}
            _ => self.check_not_failed()?,
        }
        let tag = match control {
            Control::Begin { tag, modes } => {
                self.begin(modes)?;
                tag
            }
            Control::Commit { chain } => {
                let failed = self.block.as_ref().is_some_and(|block| block.stage == Stage::Failed);
                self.expect_block("COMMIT", *chain)?;
                let modes = self.modes();
                if failed {
                    self.roll_back();
                } else {
                    self.commit().await?;
                }
                self.chain(*chain, &modes);
                if failed { "ROLLBACK" } else { "COMMIT" }
            }
            Control::RollBack { chain } => {
                self.expect_block("ROLLBACK", *chain)?;
                let modes = self.modes();
                self.roll_back();
                self.chain(*chain, &modes);
                "ROLLBACK"
            }
            Control::Savepoint(name) => {
                let settings = self.settings.clone();
                let block = self.block_for("SAVEPOINT")?;
                let at = match &block.work {
                    Work::Writes(txn) => Some(txn.savepoint()),
                    Work::None | Work::Reads(_) => None,
                };
                block.savepoints.push(Point { name: name.clone(), at, settings });
                "SAVEPOINT"
            }
            Control::Release(name) => {
                let block = self.block_for("RELEASE SAVEPOINT")?;
                let place = block.find(name)?;
                block.savepoints.truncate(place);
                "RELEASE"
            }
            Control::RollBackTo(name) => {
                let block = self.block_for("ROLLBACK TO SAVEPOINT")?;
                let place = block.find(name)?;
                let settings = block.savepoints[place].settings.clone();
                block.savepoints.truncate(place + 1);
                block.stage = Stage::Used;
                let at = block.savepoints[place].at;
                match (&block.work, at) {
                    (Work::Writes(txn), Some(at)) => txn.roll_back_to(at),
                    // Everything came later.
                    (Work::Writes(_), None) => self.give_up_work(),
                    (Work::None | Work::Reads(_), _) => {}
                }
                self.restore(settings);
                "ROLLBACK"
            }
            Control::Set(modes) => {
                self.set_modes(modes)?;
                "SET"
            }
            Control::SetDefaults(modes) => {
                no_time(modes)?;
                if let Some(read_only) = modes.read_only {
                    let on = if read_only { "on" } else { "off" };
                    let change = self.settings.set("default_transaction_read_only", on)?;
                    self.changes.extend(change);
                    self.epoch += 1;
                }
                "SET"
            }
        };
        Ok(Outcome::Done { tag: tag.to_owned() })
    }

    fn begin(&mut self, modes: &Modes) -> Result<(), SqlError> {
        let at = match &modes.as_of {
            Some(_) if modes.read_only == Some(false) || self.block.is_some() => {
                return no_time(modes);
            }
            Some(time) => Some(self.point_in_time(time)?),
            None => None,
        };
        if let Some(at) = at {
            let modes = Modes { read_only: Some(true), ..modes.clone() };
            let work = Work::Reads(Reads::Stale(at));
            self.block = Some(Block { work, ..self.new_block(false, &modes) });
            return Ok(());
        }
        match &mut self.block {
            // What came before in the same series belongs to the block.
            Some(block) if block.implicit => {
                block.implicit = false;
                if modes.read_only.is_some() {
                    return self.set_modes(modes);
                }
            }
            Some(_) => self.notice(warning(
                SqlState::ACTIVE_SQL_TRANSACTION,
                "there is already a transaction in progress",
            )),
            None => self.block = Some(self.new_block(false, modes)),
        }
        Ok(())
    }

    /// COMMIT and ROLLBACK outside of a block do nothing but to say so.
    fn expect_block(&mut self, what: &str, chain: bool) -> Result<(), SqlError> {
        if self.block.as_ref().is_some_and(|block| !block.implicit) {
            return Ok(());
        }
        if chain {
            return Err(only_in_blocks(&format!("{what} AND CHAIN")));
        }
        self.notice(warning(
            SqlState::NO_ACTIVE_SQL_TRANSACTION,
            "there is no transaction in progress",
        ));
        Ok(())
    }

    fn modes(&self) -> Modes {
        let read_only = self.block.as_ref().map(|block| block.read_only);
        Modes { read_only, ..Modes::default() }
    }

    fn chain(&mut self, chain: bool, modes: &Modes) {
        if chain {
            self.block = Some(self.new_block(false, modes));
        }
    }

    fn block_for(&mut self, what: &str) -> Result<&mut Block, SqlError> {
        match &mut self.block {
            Some(block) if !block.implicit => Ok(block),
            _ => Err(only_in_blocks(what)),
        }
    }

    fn set_modes(&mut self, modes: &Modes) -> Result<(), SqlError> {
        no_time(modes)?;
        let Some(block) = self.block.as_mut().filter(|block| !block.implicit) else {
            self.notice(warning(
                SqlState::NO_ACTIVE_SQL_TRANSACTION,
                "SET TRANSACTION can only be used in transaction blocks",
            ));
            return Ok(());
        };
        let too_late = |what: &str| {
            let message = format!("{what} must be set before any query");
            Err(SqlError::new(SqlState::ACTIVE_SQL_TRANSACTION, message))
        };
        if modes.isolation.is_some_and(|level| level != "serializable")
            && block.stage != Stage::Fresh
        {
            return too_late("SET TRANSACTION ISOLATION LEVEL");
        }
        if let Some(read_only) = modes.read_only {
            if !read_only && block.read_only && block.stage != Stage::Fresh {
                return too_late("transaction read-write mode");
            }
            // What was begun as read-write goes on under locks, and writes no more.
            block.read_only = read_only;
        }
        Ok(())
    }

    /// `SET transaction_read_only`.
    pub(super) fn set_read_only(&mut self, read_only: bool) -> Result<(), SqlError> {
        self.set_modes(&Modes { read_only: Some(read_only), ..Modes::default() })
    }

    /// `SHOW transaction_read_only`.
    pub(super) fn is_read_only(&self) -> bool {
        self.check_may_write("").is_err()
    }
}

impl Block {
    /// The last savepoint of that name.
    fn find(&self, name: &str) -> Result<usize, SqlError> {
        self.savepoints.iter().rposition(|point| point.name == name).ok_or_else(|| {
            let message = format!("savepoint \"{name}\" does not exist");
            SqlError::new(SqlState::INVALID_SAVEPOINT_SPECIFICATION, message)
        })
    }
}

fn no_time(modes: &Modes) -> Result<(), SqlError> {
    match modes.as_of {
        Some(_) => {
            Err(SqlError::syntax("AS OF SYSTEM TIME is only for a READ ONLY transaction's BEGIN"))
        }
        None => Ok(()),
    }
}

fn only_in_blocks(what: &str) -> SqlError {
    let message = format!("{what} can only be used in transaction blocks");
    SqlError::new(SqlState::NO_ACTIVE_SQL_TRANSACTION, message)
}

fn warning(code: SqlState, message: &str) -> Notice {
    Notice { severity: "WARNING", ..Notice::new(code, message) }
}
