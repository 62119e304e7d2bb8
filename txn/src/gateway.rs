//! The gateway side: requests to tablets wherever they are led.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use meridian_replication::net::NetError;
use meridian_replication::{Placement, PlacementChange, TabletDescriptor};
use meridian_storage::{KeyRange, NodeId, TabletId};
use meridian_truetime::{Elapsed, EnvironmentExt, Moment, Timestamp};
use serde::de::DeserializeOwned;

use crate::command::{
    Absorb, Content, Mutation, ReadAt, ReadSet, Request, Row, ScanRequest, ScanResult, Versions,
    WriteRequest, decode, encode,
};
use crate::directory::{
    DirectoryRead, DirectoryRow, SYSTEM_TABLET, directory_range, table_of, tablet_counter_key,
};
use crate::error::{TxnError, not_executed};
use crate::node::Node;
use crate::placement::{Current, allocate};
use crate::service::{SERVICE, TabletStatus};
use crate::tablet::{Target, directory_begins};

/// How long a gateway looks for a leader that serves: several elections.
const PATIENCE: Duration = Duration::from_secs(12);

/// How long it waits for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a replica may take to move, before whoever waits for it is told that it goes on.
const MOVE: Duration = Duration::from_mins(2);

/// How large a part of a tablet is that is staged in another's log.
const PART: usize = 256 << 10;

/// The first pause after every replica was asked in vain, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(320));

/// What a failed call means for the request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Asking again is harmless.
    Repeatable,
    /// If it may have been carried out, the outcome is unknown.
    Once,
}

impl Node {
    /// The tablets that cover `range`, in the order of their keys. Asks the directory when this
    /// node's copy of it leaves a gap, for as long as there is one: a tablet that was just split off
    /// is entered a moment later.
    ///
    /// # Errors
    /// [`TxnError::NoSuchTablet`] when the table has no tablet at all, or the directory can't be
    /// read.
    pub async fn tablets(&self, range: &KeyRange) -> Result<Vec<TabletDescriptor>, TxnError> {
        let deadline = self.env().moment().plus(PATIENCE);
        let mut pause = PAUSE.0;
        loop {
            if let Some(found) = self.directory().covering(range) {
                return Ok(found);
            }
            self.refresh_directory().await?;
            if let Some(found) = self.directory().covering(range) {
                return Ok(found);
            }
            let gap = TxnError::NoSuchTablet { tablet: TabletId::new(0) };
            if !self.directory().touches(&table_of(range)) {
                return Err(gap);
            }
            self.pause(pause, deadline, gap).await?;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Reads the directory's rows into this node's copy.
    ///
    /// # Errors
    /// When the system tablet can't be read.
    pub async fn refresh_directory(&self) -> Result<(), TxnError> {
        let (_, rows) = self.directory_rows().await?;
        self.directory().learn(rows);
        Ok(())
    }

    /// Reads the directory.
    ///
    /// # Errors
    /// When the system tablet can't be read.
    pub async fn read_directory(&self) -> Result<DirectoryRead, TxnError> {
        let (at, rows) = self.directory_rows().await?;
        let live = |row| match row {
            DirectoryRow::Live(descriptor) => Some(descriptor),
            DirectoryRow::Gone { .. } => None,
        };
        let tablets = rows.into_iter().filter_map(live).collect();
        Ok(DirectoryRead { at, rows: directory_range(), tablets })
    }

    async fn directory_rows(&self) -> Result<(Timestamp, Vec<DirectoryRow>), TxnError> {
        let mut range = directory_range();
        let mut rows = Vec::new();
        let mut at = ReadAt::Strong { min: Timestamp::MIN };
        loop {
            let scan = ScanRequest { range: range.clone(), at, limit: u64::MAX, reverse: false };
            let page = self.scan(SYSTEM_TABLET, scan).await?;
            for row in &page.rows {
                rows.push(DirectoryRow::decode(&row.value)?);
            }
            let Some(last) = page.rows.last().filter(|_| page.more) else {
                return Ok((page.at, rows));
            };
            range.start.clone_from(&last.key);
            range.start.push(0);
            at = ReadAt::Exact(page.at);
        }
    }

    /// Reads rows of a range of one tablet.
    ///
    /// # Errors
    /// [`TxnError`].
    pub async fn scan(&self, tablet: TabletId, scan: ScanRequest) -> Result<ScanResult, TxnError> {
        self.ask_leader(tablet, Request::Scan { tablet, scan }, Effect::Repeatable).await
    }

    /// Reads rows of one tablet by their keys; `None` for those that don't exist.
    ///
    /// # Errors
    /// [`TxnError`].
    pub async fn get(
        &self,
        tablet: TabletId,
        keys: Vec<Vec<u8>>,
        at: ReadAt,
    ) -> Result<(Timestamp, Vec<Option<Row>>), TxnError> {
        self.ask_leader(tablet, Request::Get { tablet, keys, at }, Effect::Repeatable).await
    }

    /// Carries out a write; its commit timestamp.
    ///
    /// # Errors
    /// [`TxnError::Unknown`] when the write may have been carried out; otherwise it was not.
    pub async fn write(&self, request: WriteRequest) -> Result<Timestamp, TxnError> {
        let tablet = request.tablet;
        self.ask_leader(tablet, Request::Write(request), Effect::Once).await
    }

    /// Opens the replicas of a new tablet that the directory has, and waits until it serves.
    ///
    /// # Errors
    /// When no majority of its replicas could be opened in time. The nodes find the tablet in the
    /// directory and open it later by themselves.
    pub async fn ensure_tablet(&self, descriptor: &TabletDescriptor) -> Result<(), TxnError> {
        let others = descriptor.replicas().filter(|node| *node != descriptor.preferred_leader);
        let opened = others.map(|node| async move {
            let request = Request::Ensure { descriptor: descriptor.clone(), lead: false };
            self.ask::<()>(node, descriptor.id, request, Effect::Repeatable).await
        });
        for result in futures::future::join_all(opened).await {
            if let Err(error) = result {
                tracing::warn!(tablet = %descriptor.id, %error, "a replica was not opened yet");
            }
        }
        let lead = Request::Ensure { descriptor: descriptor.clone(), lead: true };
        let leader = descriptor.preferred_leader;
        if let Err(error) = self.ask::<()>(leader, descriptor.id, lead, Effect::Repeatable).await {
            tracing::warn!(tablet = %descriptor.id, %error, "the leader was not opened yet");
        }
        let known = self.directory().get(descriptor.id).is_some();
        if !known {
            self.refresh_directory().await?;
        }
        let confirm = Request::Confirm { tablet: descriptor.id };
        self.ask_leader(descriptor.id, confirm, Effect::Repeatable).await
    }

    /// Makes every tablet that holds keys of `range` refuse writes that were planned under a schema
    /// version of `table` below `version`.
    ///
    /// # Errors
    /// When one of the tablets can't be reached; those before it have the fence.
    pub async fn fence_table(
        &self,
        range: &KeyRange,
        table: u64,
        version: u64,
    ) -> Result<(), TxnError> {
        for descriptor in self.tablets(range).await? {
            let tablet = descriptor.id;
            let fence = Request::Fence { tablet, table, version };
            self.ask_leader::<Timestamp>(tablet, fence, Effect::Repeatable).await?;
        }
        Ok(())
    }

    /// Takes a tablet id that was never used.
    ///
    /// # Errors
    /// When the system tablet can't be written.
    pub async fn new_tablet_id(&self) -> Result<TabletId, TxnError> {
        let deadline = self.env().moment().plus(PATIENCE);
        let key = tablet_counter_key();
        let mut pause = PAUSE.0;
        loop {
            let (at, rows) =
                self.get(SYSTEM_TABLET, vec![key.clone()], ReadAt::Unconfirmed).await?;
            let row = rows.into_iter().next().flatten();
            let next = match &row {
                Some(row) => decode::<u64>(&row.value)?,
                None => SYSTEM_TABLET.get() + 1,
            };
            let seen = (key.clone(), row.map(|row| row.ts));
            let request = WriteRequest {
                tablet: SYSTEM_TABLET,
                schema: Vec::new(),
                reads: ReadSet { at, keys: vec![seen], ranges: Vec::new() },
                mutations: vec![Mutation::Put { key: key.clone(), value: encode(&(next + 1))? }],
                after: Timestamp::MIN,
            };
            match self.write(request).await {
                Ok(_) => return Ok(TabletId::new(next)),
                // An id that was perhaps taken is lost.
                Err(error @ (TxnError::Conflict | TxnError::Unknown { .. })) => {
                    self.pause(pause, deadline, error).await?;
                    pause = (pause * 2).min(PAUSE.1);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The one tablet that holds `key`.
    async fn tablet_of(&self, key: &[u8]) -> Result<TabletDescriptor, TxnError> {
        let found = self.tablets(&KeyRange::point(key)).await?;
        found.into_iter().next().ok_or(TxnError::NoSuchTablet { tablet: TabletId::new(0) })
    }

    /// What a command for the tablet that holds `key` answers, wherever that is by now.
    async fn command_at<F>(&self, key: &[u8], mut request: F) -> Result<TabletDescriptor, TxnError>
    where
        F: FnMut(&TabletDescriptor) -> Result<Option<Request>, TxnError> + Send,
    {
        let deadline = self.env().moment().plus(PATIENCE);
        loop {
            let descriptor = self.tablet_of(key).await?;
            let Some(request) = request(&descriptor)? else { return Ok(descriptor) };
            match self.ask_leader::<Timestamp>(descriptor.id, request, Effect::Repeatable).await {
                Ok(_) => return Ok(descriptor),
                Err(error @ TxnError::Moved { .. }) => {
                    self.pause(PAUSE.0, deadline, error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Splits the tablet that holds `key` in front of it, where a directory must begin; the new
    /// tablet that begins there, which serves when this returns. A tablet that begins there already
    /// is left as it is.
    ///
    /// # Errors
    /// [`TxnError::Refused`] when no directory can begin there.
    pub async fn split(&self, key: Vec<u8>) -> Result<TabletId, TxnError> {
        let descriptor = self.tablet_of(&key).await?;
        if descriptor.id == SYSTEM_TABLET {
            return Err(TxnError::refused(
                "the system tablet can't be split",
                "Split at a key of a table of your own.",
            ));
        }
        if descriptor.range.start != key {
            let child = self.new_tablet_id().await?;
            self.command_at(&key, |descriptor| {
                let tablet = descriptor.id;
                let split = || Request::Split { tablet, key: key.clone(), child };
                Ok((descriptor.range.start != key).then(split))
            })
            .await?;
        }
        self.serving_from(&key).await
    }

    /// Waits until the tablet that begins at `key` serves.
    async fn serving_from(&self, key: &[u8]) -> Result<TabletId, TxnError> {
        let deadline = self.env().moment().plus(PATIENCE);
        loop {
            let descriptor = self.tablet_of(key).await?;
            if descriptor.range.start == key {
                let confirm = Request::Confirm { tablet: descriptor.id };
                self.ask_leader::<()>(descriptor.id, confirm, Effect::Repeatable).await?;
                return Ok(descriptor.id);
            }
            // This node's copy of the directory is older than the split.
            self.refresh_directory().await?;
            let late = TxnError::Unavailable { tablet: descriptor.id, reason: "it lags".into() };
            self.pause(PAUSE.0, deadline, late).await?;
        }
    }

    /// Merges a tablet with its right neighbour of the same root table; the tablet that is left.
    ///
    /// # Errors
    /// [`TxnError::Refused`] when it has no such neighbour.
    pub async fn merge(&self, tablet: TabletId) -> Result<TabletId, TxnError> {
        let deadline = self.env().moment().plus(MOVE);
        let left = self.known(tablet).await?;
        let end = left.range.end.clone().filter(|end| table_of(&left.range).contains(end));
        let Some(end) = end else {
            return Err(TxnError::refused(
                format!("{tablet} is the last of its table"),
                "A tablet is merged with its right neighbour: name the one on the left.",
            ));
        };
        // This one and no other, whatever the left tablet's neighbour is by then.
        let right = self.tablet_of(&end).await?.id;
        loop {
            let freeze = Request::Freeze { tablet: right, into: tablet };
            match self.ask_leader::<Timestamp>(right, freeze, Effect::Repeatable).await {
                // The right one's leader does the rest, and may be over by now.
                Ok(_) | Err(TxnError::NoSuchTablet { .. } | TxnError::Unknown { .. }) => {}
                Err(error @ TxnError::Unavailable { .. }) => {
                    self.pause(PAUSE.1, deadline, error).await?;
                }
                Err(error) => return Err(error),
            }
            self.refresh_directory().await?;
            match self.directory().absorber(right) {
                Some(Some(into)) if into == tablet => return Ok(tablet),
                Some(_) => {
                    return Err(TxnError::refused(
                        format!("{right}, the neighbour of {tablet}, is gone"),
                        "It was merged into another tablet or dropped meanwhile.",
                    ));
                }
                None => {}
            }
            let now = self.known(tablet).await?;
            if now.range.end.as_ref().is_some_and(|now| *now < end) {
                return Err(TxnError::refused(
                    format!("{right} is no neighbour of {tablet} any more"),
                    "One of the two was split meanwhile.",
                ));
            }
            let late = TxnError::Unavailable { tablet, reason: "it is still being merged".into() };
            self.pause(PAUSE.1 / 4, deadline, late).await?;
        }
    }

    /// A tablet's descriptor as its leader has it, and the tablets that it has absorbed.
    pub(crate) async fn describe(
        &self,
        tablet: TabletId,
    ) -> Result<(TabletDescriptor, BTreeSet<TabletId>), TxnError> {
        self.ask_leader(tablet, Request::Describe { tablet }, Effect::Repeatable).await
    }

    /// Stages what this node holds of `range` in the log of another tablet; in how many parts.
    pub(crate) async fn stage(
        &self,
        tablet: TabletId,
        content: Content,
        range: &KeyRange,
    ) -> Result<u64, TxnError> {
        let view = self.storage().data.snapshot()?;
        let mut rows = view.versions(range)?.peekable();
        let mut part = 0;
        while part == 0 || rows.peek().is_some() {
            let (mut versions, mut size) = (Versions::new(), 0);
            while size < PART
                && let Some(version) = rows.next()
            {
                let (key, at, value) = version?;
                size += key.len() + value.as_ref().map_or(0, Vec::len) + 16;
                versions.push((key, at, value));
            }
            let stage = Request::Stage { tablet, content, part, versions };
            self.ask_leader::<Timestamp>(tablet, stage, Effect::Repeatable).await?;
            part += 1;
        }
        Ok(part)
    }

    pub(crate) async fn ask_to_absorb(
        &self,
        tablet: TabletId,
        absorb: Absorb,
    ) -> Result<Timestamp, TxnError> {
        let request = Request::Absorb { tablet, absorb };
        self.ask_leader(tablet, request, Effect::Once).await
    }

    /// Changes where the replicas of a range's tablets should be, after splitting at the range's
    /// ends. Returns when every tablet knows; the replicas move then.
    ///
    /// # Errors
    /// [`TxnError::Refused`] when the nodes can't satisfy it; nothing is changed then.
    pub async fn place(
        &self,
        range: &KeyRange,
        change: PlacementChange,
    ) -> Result<Vec<TabletId>, TxnError> {
        self.refresh_directory().await?;
        let touched = self.tablets(range).await?;
        for descriptor in &touched {
            self.placed(descriptor, &change)?;
            for end in [Some(&range.start), range.end.as_ref()].into_iter().flatten() {
                let inside = descriptor.range.contains(end) && descriptor.range.start != *end;
                if inside && !directory_begins(end, descriptor) {
                    return Err(TxnError::refused(
                        "a range can't begin or end inside a directory",
                        "Its ends are keys of the root table.",
                    ));
                }
            }
        }
        for end in [Some(&range.start), range.end.as_ref()].into_iter().flatten() {
            let covered = self.directory().touches(&KeyRange::point(end.clone()));
            if covered && self.tablet_of(end).await?.range.start != *end {
                self.split(end.clone()).await?;
            }
        }
        let mut placed = Vec::new();
        let mut next = Some(range.start.clone());
        while let Some(key) = next.filter(|key| range.contains(key)) {
            let descriptor = self
                .command_at(&key, |descriptor| {
                    let (placement, preferred_leader, target) = self.placed(descriptor, &change)?;
                    let tablet = descriptor.id;
                    Ok(Some(Request::Place { tablet, placement, preferred_leader, target }))
                })
                .await?;
            placed.push(descriptor.id);
            next = descriptor.range.end;
        }
        Ok(placed)
    }

    fn placed(
        &self,
        descriptor: &TabletDescriptor,
        change: &PlacementChange,
    ) -> Result<(Placement, NodeId, Target), TxnError> {
        let placement = descriptor.placement.clone().with(change.clone());
        let current = Current {
            voters: &descriptor.voters,
            read_only: &descriptor.read_only,
            preferred_leader: descriptor.preferred_leader,
        };
        let (target, preferred_leader) = allocate(&placement, self.members(), current)?;
        Ok((placement, preferred_leader, target))
    }

    /// A tablet as the directory has it now.
    async fn known(&self, tablet: TabletId) -> Result<TabletDescriptor, TxnError> {
        self.refresh_directory().await?;
        match self.directory().get(tablet) {
            Some(_) if tablet == SYSTEM_TABLET => Err(TxnError::refused(
                "the system tablet stays where it is",
                "Its replicas are on the cluster's first nodes.",
            )),
            Some(descriptor) => Ok(descriptor),
            None => Err(TxnError::refused(
                format!("there is no {tablet}"),
                "meridian.tablets shows the tablets.",
            )),
        }
    }

    /// Hands a tablet's leadership to the replica on `node`, and returns when that leads. It keeps
    /// it from then on, as far as it can.
    ///
    /// # Errors
    /// [`TxnError::Refused`] when no voter is there, or the placement wants another region to lead;
    /// [`TxnError::Unavailable`] when it doesn't take over in time.
    pub async fn transfer_leader(&self, tablet: TabletId, node: NodeId) -> Result<(), TxnError> {
        let descriptor = self.known(tablet).await?;
        if !descriptor.voters.contains(&node) {
            return Err(TxnError::refused(
                format!("{tablet} has no voting replica on {node}"),
                "meridian.tablets shows where its replicas are.",
            ));
        }
        let region = self.members().iter().find(|m| m.id == node).map(|m| m.region.as_str());
        let wanted = descriptor.placement.leader_region.as_deref();
        if wanted.is_some() && wanted != region {
            return Err(TxnError::refused(
                format!("{tablet} is to be led in {}", wanted.unwrap_or_default()),
                "Change its placement with meridian.place.",
            ));
        }
        let prefer = Request::Prefer { tablet, leader: node };
        self.ask_leader::<Timestamp>(tablet, prefer, Effect::Repeatable).await?;
        let transfer = Request::Transfer { tablet, to: node };
        self.ask_leader::<()>(tablet, transfer, Effect::Repeatable).await?;
        self.set_leader_hint(tablet, node);
        self.ask_leader::<()>(tablet, Request::Confirm { tablet }, Effect::Repeatable).await
    }

    /// Moves a tablet's replica from one node to another, and returns when it is there.
    ///
    /// # Errors
    /// [`TxnError::Refused`] when there is none to be moved, or one is there already, or the
    /// placement forbids the new place.
    pub async fn move_replica(
        &self,
        tablet: TabletId,
        from: NodeId,
        to: NodeId,
    ) -> Result<(), TxnError> {
        let deadline = self.env().moment().plus(MOVE);
        loop {
            let descriptor = self.known(tablet).await?;
            let target = self.moved(&descriptor, from, to)?;
            let leads = descriptor.preferred_leader;
            let preferred_leader = if leads == from { to } else { leads };
            let generation = descriptor.generation;
            let settled = target.clone();
            let change = Request::Move { tablet, generation, preferred_leader, target };
            match self.ask_leader::<Timestamp>(tablet, change, Effect::Repeatable).await {
                Ok(_) => return self.settled(tablet, &settled).await,
                // Something else changed, or is on its way: one change at a time.
                Err(error @ (TxnError::Moved { .. } | TxnError::Unavailable { .. })) => {
                    self.pause(PAUSE.1, deadline, error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The replicas after one has moved.
    fn moved(
        &self,
        descriptor: &TabletDescriptor,
        from: NodeId,
        to: NodeId,
    ) -> Result<Target, TxnError> {
        let tablet = descriptor.id;
        let hint = "meridian.tablets shows where its replicas are.";
        let Some(member) = self.members().iter().find(|member| member.id == to) else {
            return Err(TxnError::refused(
                format!("there is no {to}"),
                "meridian.nodes shows the nodes.",
            ));
        };
        if !descriptor.replicas().any(|node| node == from) {
            return Err(TxnError::refused(format!("{tablet} has no replica on {from}"), hint));
        }
        if descriptor.replicas().any(|node| node == to) {
            return Err(TxnError::refused(format!("{tablet} has a replica on {to}"), hint));
        }
        let votes = descriptor.voters.contains(&from);
        let regions = &descriptor.placement.regions;
        if votes && !regions.is_empty() && !regions.contains(&member.region) {
            return Err(TxnError::refused(
                format!("the placement of {tablet} keeps its voters in {}", regions.join(", ")),
                "Change its placement with meridian.place.",
            ));
        }
        let replaced = |nodes: &[NodeId]| -> Vec<NodeId> {
            nodes.iter().map(|node| if *node == from { to } else { *node }).collect()
        };
        Ok(Target {
            voters: replaced(&descriptor.voters),
            read_only: replaced(&descriptor.read_only),
        })
    }

    /// Waits until a tablet's replicas are where they should be.
    async fn settled(&self, tablet: TabletId, target: &Target) -> Result<(), TxnError> {
        let deadline = self.env().moment().plus(MOVE);
        loop {
            let now = self.known(tablet).await?;
            let all = |has: &[NodeId], wants: &[NodeId]| {
                has.len() == wants.len() && wants.iter().all(|node| has.contains(node))
            };
            if all(&now.voters, &target.voters) && all(&now.read_only, &target.read_only) {
                return Ok(());
            }
            let late = TxnError::Unavailable {
                tablet,
                reason: "its replicas are still on their way".to_owned(),
            };
            self.pause(PAUSE.1, deadline, late).await?;
        }
    }

    /// Opens a replica of a tablet on a node that is to be a member.
    pub(crate) async fn ask_to_open(
        &self,
        node: NodeId,
        descriptor: &TabletDescriptor,
    ) -> Result<(), TxnError> {
        let request = Request::Ensure { descriptor: descriptor.clone(), lead: false };
        self.ask(node, descriptor.id, request, Effect::Repeatable).await
    }

    /// Ends a tablet whose table was dropped: when this returns, no gateway reads from it or
    /// writes to it any more, however old its catalog. Then removes its replicas; those that can't
    /// be reached remove themselves later.
    ///
    /// # Errors
    /// When the tablet's leader can't be reached.
    pub async fn retire_tablet(&self, descriptor: &TabletDescriptor) -> Result<(), TxnError> {
        let tablet = descriptor.id;
        let retire = Request::Retire { tablet };
        match self.ask_leader::<Timestamp>(tablet, retire, Effect::Repeatable).await {
            Ok(_) | Err(TxnError::NoSuchTablet { .. }) => {}
            Err(error) => return Err(error),
        }
        let removed = descriptor.replicas().map(|node| async move {
            let request = Request::Remove { tablet };
            self.ask::<()>(node, tablet, request, Effect::Repeatable).await
        });
        for result in futures::future::join_all(removed).await {
            if let Err(error) = result {
                tracing::debug!(%tablet, %error, "a replica was not removed yet");
            }
        }
        Ok(())
    }

    /// How a node's replicas stand.
    ///
    /// # Errors
    /// When the node can't be reached.
    pub async fn status_of(&self, node: NodeId) -> Result<Vec<TabletStatus>, TxnError> {
        self.ask(node, SYSTEM_TABLET, Request::Status, Effect::Repeatable).await
    }

    /// One request to one node.
    async fn ask<T: DeserializeOwned>(
        &self,
        node: NodeId,
        tablet: TabletId,
        request: Request,
        effect: Effect,
    ) -> Result<T, TxnError> {
        if node == self.id() {
            // As patient as with another node: a leader alone may never hear from a majority.
            return match self.env().timeout(ANSWER, Box::pin(self.serve(request))).await {
                Ok(answer) => decode::<Result<T, TxnError>>(&answer)?,
                Err(Elapsed) => Err(match effect {
                    Effect::Repeatable => TxnError::Unavailable { tablet, reason: late() },
                    Effect::Once => TxnError::Unknown { reason: late() },
                }),
            };
        }
        let message = encode(&request)?;
        let answer = self.transport().call(node, SERVICE, message.into(), ANSWER).await;
        match answer {
            Ok(answer) => decode::<Result<T, TxnError>>(&answer)?,
            Err(error) if effect == Effect::Repeatable || error.certainly_not_executed() => {
                Err(not_executed(tablet, &error))
            }
            Err(error) => Err(unknown(&error)),
        }
    }

    async fn ask_leader<T: DeserializeOwned + Send>(
        &self,
        tablet: TabletId,
        request: Request,
        effect: Effect,
    ) -> Result<T, TxnError> {
        self.at_leader(tablet, |node| self.ask(node, tablet, request.clone(), effect)).await
    }

    /// Finds the leader of a tablet and makes `attempt` there. What certainly wasn't done
    /// ([`TxnError::NotLeader`], [`TxnError::Unavailable`], a replica that isn't there) is attempted
    /// again elsewhere, for several elections; any other error ends it.
    ///
    /// # Errors
    /// The attempt's last error.
    pub async fn at_leader<T, F, A>(&self, tablet: TabletId, mut attempt: A) -> Result<T, TxnError>
    where
        F: Future<Output = Result<T, TxnError>> + Send,
        A: FnMut(NodeId) -> F + Send,
    {
        let deadline = self.env().moment().plus(PATIENCE);
        let mut search = Search::new(self.replicas_of(tablet).await?, self.leader_hint(tablet));
        loop {
            let node = search.node();
            let error = match attempt(node).await {
                Ok(done) => {
                    self.set_leader_hint(tablet, node);
                    return Ok(done);
                }
                Err(TxnError::Unknown { reason }) => {
                    // It doesn't answer: the next request begins elsewhere.
                    search.next();
                    self.set_leader_hint(tablet, search.node());
                    return Err(TxnError::Unknown { reason });
                }
                Err(TxnError::Moved { tablet, known }) => {
                    self.directory().learn(known.iter().cloned().map(DirectoryRow::Live));
                    return Err(TxnError::Moved { tablet, known });
                }
                Err(error) => error,
            };
            let pause = match &error {
                TxnError::NotLeader { leader, .. } => search.redirected(*leader),
                TxnError::Unavailable { .. } => search.next(),
                TxnError::NoSuchTablet { .. } => {
                    // The replica may not be opened yet, or the tablet may be gone.
                    search.replicas = self.replicas_of_refreshed(tablet).await?.voters;
                    search.next();
                    Some(search.next_round())
                }
                _ => return Err(error),
            };
            if let Some(pause) = pause {
                self.pause(pause, deadline, error).await?;
            }
        }
    }

    async fn pause(
        &self,
        pause: Duration,
        deadline: Moment,
        error: TxnError,
    ) -> Result<(), TxnError> {
        if self.env().moment().plus(pause) > deadline {
            return Err(match error {
                TxnError::NotLeader { tablet, .. } => {
                    TxnError::Unavailable { tablet, reason: "it has no leader".into() }
                }
                error => error,
            });
        }
        self.env().sleep(pause).await;
        Ok(())
    }

    async fn replicas_of(&self, tablet: TabletId) -> Result<TabletDescriptor, TxnError> {
        match self.directory().get(tablet) {
            Some(descriptor) => Ok(descriptor),
            None => self.replicas_of_refreshed(tablet).await,
        }
    }

    async fn replicas_of_refreshed(&self, tablet: TabletId) -> Result<TabletDescriptor, TxnError> {
        if tablet != SYSTEM_TABLET {
            Box::pin(self.refresh_directory()).await?;
        }
        self.directory().get(tablet).ok_or(TxnError::NoSuchTablet { tablet })
    }
}

fn late() -> String {
    format!("the leader didn't answer within {} s", ANSWER.as_secs())
}

fn unknown(error: &NetError) -> TxnError {
    TxnError::Unknown { reason: error.to_string() }
}

/// The order in which a gateway asks a tablet's replicas for their leader.
struct Search {
    replicas: Vec<NodeId>,
    /// Who is asked next.
    at: NodeId,
    /// How many were asked since the last pause.
    asked: usize,
    /// How many pauses were made.
    round: u32,
}

impl Search {
    fn new(descriptor: TabletDescriptor, hint: Option<NodeId>) -> Self {
        // The preferred leader may not have a replica yet, or no longer.
        let preferred = Some(descriptor.preferred_leader).filter(|n| descriptor.voters.contains(n));
        let at = hint.or(preferred).or_else(|| descriptor.voters.first().copied());
        let at = at.unwrap_or(descriptor.preferred_leader);
        Self { replicas: descriptor.voters, at, asked: 0, round: 0 }
    }

    fn node(&self) -> NodeId {
        self.at
    }

    /// A replica named the leader, or doesn't know it; the pause before that is asked, if any.
    fn redirected(&mut self, leader: Option<NodeId>) -> Option<Duration> {
        match leader.filter(|leader| *leader != self.at) {
            Some(leader) => {
                self.at = leader;
                self.count()
            }
            None => self.next(),
        }
    }

    /// On to the next replica; the pause before it is asked, if any.
    fn next(&mut self) -> Option<Duration> {
        let here = self.replicas.iter().position(|node| *node == self.at);
        let next = here.map_or(0, |here| (here + 1) % self.replicas.len().max(1));
        self.at = self.replicas.get(next).copied().unwrap_or(self.at);
        self.count()
    }

    fn count(&mut self) -> Option<Duration> {
        self.asked += 1;
        if self.asked < self.replicas.len() { None } else { Some(self.next_round()) }
    }

    fn next_round(&mut self) -> Duration {
        self.asked = 0;
        let pause = (PAUSE.0 * 2_u32.saturating_pow(self.round)).min(PAUSE.1);
        self.round = (self.round + 1).min(16);
        pause
    }
}

#[cfg(test)]
mod tests {
    use meridian_replication::{Generation, Placement};
    use meridian_storage::KeyRange;

    use super::*;

    fn search() -> Search {
        Search::new(descriptor(), None)
    }

    fn descriptor() -> TabletDescriptor {
        let replicas: Vec<NodeId> = (1..=3).map(NodeId::new).collect();
        TabletDescriptor {
            id: TabletId::new(7),
            generation: Generation::FIRST,
            range: KeyRange { start: Vec::new(), end: None },
            preferred_leader: replicas[1],
            voters: replicas,
            read_only: Vec::new(),
            root_key: Vec::new(),
            placement: Placement::default(),
        }
    }

    #[test]
    fn begins_with_the_preferred_leader_and_goes_round() {
        let mut search = search();
        assert_eq!(search.node(), NodeId::new(2));
        assert_eq!(search.next(), None);
        assert_eq!(search.node(), NodeId::new(3));
        assert_eq!(search.next(), None);
        assert_eq!(search.node(), NodeId::new(1));
        assert_eq!(search.next(), Some(PAUSE.0), "all were asked");
    }

    #[test]
    fn begins_with_a_voter_if_the_preferred_leader_is_none() {
        let mut descriptor = descriptor();
        descriptor.preferred_leader = NodeId::new(9);
        let mut search = Search::new(descriptor, None);
        assert_eq!(search.node(), NodeId::new(1));
        search.next();
        assert_eq!(search.node(), NodeId::new(2));
        let mut led_elsewhere = Search::new(self::descriptor(), Some(NodeId::new(9)));
        assert_eq!(led_elsewhere.node(), NodeId::new(9));
        led_elsewhere.next();
        assert_eq!(led_elsewhere.node(), NodeId::new(1));
    }

    #[test]
    fn follows_a_redirect_but_not_in_circles() {
        let mut search = search();
        assert_eq!(search.redirected(Some(NodeId::new(1))), None);
        assert_eq!(search.node(), NodeId::new(1));
        assert_eq!(search.redirected(Some(NodeId::new(2))), None);
        assert_eq!(search.redirected(Some(NodeId::new(1))), Some(PAUSE.0));
    }
}
