//! Changes of tablets that users ask for: to be made, split, merged, placed, moved and ended.
//!
//! Each is a command in the tablet's own log. What takes longer than one command, its leader goes on
//! with (`tend`); here one waits for it.

use std::collections::BTreeSet;
use std::time::Duration;

use meridian_replication::{Placement, PlacementChange, TabletDescriptor};
use meridian_storage::{KeyRange, NodeId, TabletId};
use meridian_truetime::Timestamp;

use super::{Effect, PATIENCE, PAUSE};
use crate::autosplit::Standing;
use crate::command::{Absorb, Content, Request, Versions};
use crate::directory::{SYSTEM_TABLET, table_of};
use crate::error::TxnError;
use crate::node::Node;
use crate::placement::{Current, allocate};
use crate::tablet::{Target, Unchanged, directory_begins};

/// How long a replica may take to move, before whoever waits for it is told that it goes on.
const MOVE: Duration = Duration::from_mins(2);

/// How large a part of a tablet is that is staged in another's log.
const PART: usize = 256 << 10;

impl Node {
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
                // Or absorbed meanwhile; if its table is gone, the key has no tablet at all.
                Err(error @ (TxnError::Moved { .. } | TxnError::NoSuchTablet { .. })) => {
                    self.pause(PAUSE.0, deadline, error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Splits the tablet that holds `key` in front of it, where a directory must begin; the new
    /// tablet that begins there, which serves when this returns. What is split here stays so until
    /// [`Node::merge`]; that goes for a tablet that begins there already, too.
    ///
    /// # Errors
    /// [`TxnError::Refused`] when no directory can begin there.
    pub async fn split(&self, key: Vec<u8>) -> Result<TabletId, TxnError> {
        self.split_at(key, true).await
    }

    async fn split_at(&self, key: Vec<u8>, sticky: bool) -> Result<TabletId, TxnError> {
        let is_done = |descriptor: &TabletDescriptor| {
            descriptor.range.start == key && descriptor.sticky >= sticky
        };
        let descriptor = self.tablet_of(&key).await?;
        if descriptor.id == SYSTEM_TABLET {
            return Err(TxnError::refused(
                "the system tablet can't be split",
                "Split at a key of a table of your own.",
            ));
        }
        if !is_done(&descriptor) {
            let child = self.new_tablet_id().await?;
            self.command_at(&key, |descriptor| {
                let tablet = descriptor.id;
                let split = || Request::Split { tablet, key: key.clone(), child, sticky };
                Ok((!is_done(descriptor)).then(split))
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
                match self.ask_leader::<()>(descriptor.id, confirm, Effect::Repeatable).await {
                    Ok(()) => return Ok(descriptor.id),
                    Err(TxnError::NoSuchTablet { .. }) => {}
                    Err(error) => return Err(error),
                }
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
        // This one and no other, whatever the left tablet's neighbour is by then.
        let (end, right) = loop {
            let left = self.known(tablet).await?;
            let end = left.range.end.clone().filter(|end| table_of(&left.range).contains(end));
            let Some(end) = end else {
                return Err(TxnError::refused(
                    format!("{tablet} is the last of its table"),
                    "A tablet is merged with its right neighbour: name the one on the left.",
                ));
            };
            let right = self.tablet_of(&end).await?.id;
            if right != tablet {
                break (end, right);
            }
            // What was known of it was older than its last merge.
            self.refresh_directory().await?;
        };
        loop {
            match self.freeze(right, tablet, None).await {
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

    /// Freezes a tablet, so that its left neighbour absorbs it.
    pub(crate) async fn freeze(
        &self,
        tablet: TabletId,
        into: TabletId,
        unchanged: Option<Unchanged>,
    ) -> Result<Timestamp, TxnError> {
        let freeze = Request::Freeze { tablet, into, unchanged };
        self.ask_leader(tablet, freeze, Effect::Repeatable).await
    }

    /// A tablet's descriptor as its leader has it, and how large and how hot it is.
    pub(crate) async fn measured(
        &self,
        tablet: TabletId,
    ) -> Result<(TabletDescriptor, Standing), TxnError> {
        self.ask_leader(tablet, Request::Measure { tablet }, Effect::Repeatable).await
    }

    /// A tablet's descriptor as its leader has it, and the tablets that it has absorbed.
    pub(crate) async fn describe(
        &self,
        tablet: TabletId,
    ) -> Result<(TabletDescriptor, BTreeSet<TabletId>), TxnError> {
        self.ask_leader(tablet, Request::Describe { tablet }, Effect::Repeatable).await
    }

    /// Whether a tablet's leader counts on a node's replica.
    pub(crate) async fn is_wanted(&self, tablet: TabletId, on: NodeId) -> Result<bool, TxnError> {
        self.ask_leader(tablet, Request::Wants { tablet, on }, Effect::Repeatable).await
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
                self.split_at(end.clone(), false).await?;
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
            if target.is_met_by(&now) {
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
}
