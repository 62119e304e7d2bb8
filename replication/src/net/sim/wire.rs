//! What the simulated network is: a pure state machine. The time and what nodes do go in; what
//! comes out are [`Job`]s to spawn, and messages in the queues of callers and readers. It awaits
//! nothing, and no code of a node runs inside it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use meridian_storage::NodeId;
use meridian_truetime::env::Moment;
use std::sync::Arc;
use tokio::sync::oneshot;

use super::lane::{Item, Opening, Side, Stream};
use super::link::{Link, LinkSettings, LinkView};
use crate::net::local::Home;
use crate::net::{NetError, Service, ServiceName, Topology};

/// Something that happens at a set time.
#[derive(Debug)]
pub(super) enum Event {
    /// A message of a call reaches the end of its link.
    Arrive(Message),
    /// The first message of a stream's lane is due.
    Wake { stream: u64, side: Side },
    /// Streams between two nodes may have been stalled for too long.
    Expire { nodes: [NodeId; 2] },
}

/// A message of a call.
#[derive(Debug)]
pub(super) struct Message {
    from: NodeId,
    to: NodeId,
    call: u64,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// A duplicate follows its original only where that was executed, and is itself never
    /// refused: a caller that is told that its request was not executed can rely on that.
    Request {
        service: ServiceName,
        request: Bytes,
        duplicate: bool,
    },
    Answer(Result<Bytes, NetError>),
}

impl Body {
    fn payload(&self) -> &[u8] {
        match self {
            Self::Request { request, .. } => request,
            Self::Answer(Ok(answer)) => answer,
            Self::Answer(Err(_)) => &[],
        }
    }
}

/// Events in the order of their time, and at one time in the order in which they were posted.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    events: BTreeMap<(Moment, u64), Event>,
    posted: u64,
    /// What the driver sleeps for: until then it needn't be told of anything later.
    asleep_until: Option<Moment>,
}

impl Agenda {
    pub fn post(&mut self, at: Moment, event: Event) {
        self.posted += 1;
        self.events.insert((at, self.posted), event);
    }

    fn next(&self) -> Option<Moment> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    fn take_due(&mut self, now: Moment) -> Option<(Moment, Event)> {
        let entry = self.events.first_entry()?;
        let at = entry.key().0;
        (at <= now).then(|| (at, entry.remove()))
    }

    pub fn is_due(&self, now: Moment) -> bool {
        self.next().is_some_and(|at| at <= now)
    }

    /// The driver sleeps until the next event, or until it is woken.
    pub fn driver_sleeps(&mut self) -> Option<Moment> {
        self.asleep_until = self.next();
        self.asleep_until
    }

    /// The driver sleeps until it is woken.
    pub fn driver_waits(&mut self) {
        self.asleep_until = None;
    }

    /// Whether the driver sleeps too long.
    pub fn driver_oversleeps(&self) -> bool {
        self.next().is_some_and(|at| self.asleep_until.is_none_or(|until| at < until))
    }
}

/// A node's code, to be run by its environment outside of the network's lock.
pub(super) enum Job {
    Call {
        home: Home,
        incarnation: u64,
        service: Arc<dyn Service>,
        from: NodeId,
        call: u64,
        request: Bytes,
    },
    Stream(Opening),
}

#[derive(Debug)]
struct PendingCall {
    from: NodeId,
    to: NodeId,
    /// Whether the request has reached its service.
    executing: bool,
    reply: oneshot::Sender<Result<Bytes, NetError>>,
}

#[derive(Debug)]
struct Member {
    region: usize,
    /// Counts the node's starts and stops: what an earlier life left behind has no effect.
    incarnation: u64,
    home: Option<Home>,
}

#[derive(Debug)]
pub(super) struct Wire {
    pub topology: Topology,
    /// How long a stream outlives a stalled link.
    pub patience: Duration,
    pub agenda: Agenda,
    /// Someone lets happen what is due. Only one does at a time, so that it happens in order.
    pub catching_up: bool,
    pub(super) links: BTreeMap<(NodeId, NodeId), Link>,
    pub(super) streams: BTreeMap<u64, Stream>,
    pub trace: Trace,
    members: BTreeMap<NodeId, Member>,
    calls: BTreeMap<u64, PendingCall>,
    last_id: u64,
    seed: u64,
}

impl Wire {
    pub fn new(topology: Topology, patience: Duration, seed: u64, traced: bool) -> Self {
        Self {
            topology,
            patience,
            agenda: Agenda::default(),
            catching_up: false,
            links: BTreeMap::new(),
            streams: BTreeMap::new(),
            trace: Trace { enabled: traced, hash: Trace::BASIS },
            members: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_id: 0,
            seed,
        }
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Lets the first thing happen that is due; `None` if nothing is.
    pub fn step(&mut self, now: Moment) -> Option<Option<Job>> {
        let (at, event) = self.agenda.take_due(now)?;
        Some(match event {
            Event::Arrive(message) => self.arrive(now, message),
            Event::Wake { stream, side } => self.wake(now, at, stream, side),
            Event::Expire { nodes } => {
                self.expire(now, nodes);
                None
            }
        })
    }

    /// The node's present life, if it is running.
    pub fn home(&self, node: NodeId) -> Option<&Home> {
        self.members.get(&node)?.home.as_ref()
    }

    /// Whether the node of that life is running.
    pub fn is_current(&self, node: NodeId, incarnation: u64) -> bool {
        let current = |member: &Member| member.incarnation == incarnation && member.home.is_some();
        self.members.get(&node).is_some_and(current)
    }

    pub fn knows(&self, node: NodeId) -> bool {
        self.members.contains_key(&node)
    }

    /// Starts a node; it must not be running.
    pub fn start(&mut self, home: Home, region: usize) -> u64 {
        let id = home.id;
        let incarnation = self.members.get(&id).map_or(0, |member| member.incarnation) + 1;
        self.members.insert(id, Member { region, incarnation, home: Some(home) });
        let others: Vec<_> =
            self.members.iter().map(|(node, member)| (*node, member.region)).collect();
        for (other, there) in others.into_iter().filter(|(other, _)| *other != id) {
            for (from, to, latency) in [
                (id, other, self.topology.one_way(region, there)),
                (other, id, self.topology.one_way(there, region)),
            ] {
                let settings = LinkSettings::with_latency(latency);
                let seed = self.seed;
                self.links.entry((from, to)).or_insert_with(|| Link::new(settings, seed, from, to));
            }
        }
        incarnation
    }

    /// Stops a node: it sends nothing more, and what it was part of breaks. Others learn of it as
    /// from a process that was killed: its machine says so, over the link.
    pub fn stop(&mut self, now: Moment, node: NodeId) -> Option<Home> {
        let member = self.members.get_mut(&node)?;
        let home = member.home.take()?;
        member.incarnation += 1;
        let own: Vec<u64> = self.calls_where(|call| call.from == node);
        for call in own {
            if let Some(pending) = self.calls.remove(&call) {
                let error = NetError::broken(pending.to, "this node has stopped");
                let _ = pending.reply.send(Err(error));
            }
        }
        for call in self.calls_where(|call| call.to == node && call.executing) {
            if let Some(pending) = self.calls.get_mut(&call) {
                pending.executing = false;
                let to = pending.from;
                let body = Body::Answer(Err(NetError::broken(node, "the node stopped")));
                self.send(now, Message { from: node, to, call, body });
            }
        }
        self.break_streams_of(now, node);
        Some(home)
    }

    fn calls_where(&self, wanted: impl Fn(&PendingCall) -> bool) -> Vec<u64> {
        self.calls.iter().filter(|(_, call)| wanted(call)).map(|(id, _)| *id).collect()
    }

    /// Sends a call's request; the number is for [`Wire::forget`].
    pub fn call(
        &mut self,
        now: Moment,
        [from, to]: [NodeId; 2],
        service: ServiceName,
        request: Bytes,
        reply: oneshot::Sender<Result<Bytes, NetError>>,
    ) -> u64 {
        let call = self.next_id();
        self.calls.insert(call, PendingCall { from, to, executing: false, reply });
        let body = Body::Request { service, request, duplicate: false };
        self.send(now, Message { from, to, call, body });
        call
    }

    /// The caller waits no longer.
    pub fn forget(&mut self, call: u64) {
        self.calls.remove(&call);
    }

    /// Sends a service's answer, unless its node has stopped since.
    pub fn answer(
        &mut self,
        now: Moment,
        (here, incarnation): (NodeId, u64),
        to: NodeId,
        call: u64,
        answer: Result<Bytes, NetError>,
    ) {
        if self.is_current(here, incarnation) {
            self.send(now, Message { from: here, to, call, body: Body::Answer(answer) });
        }
    }

    fn send(&mut self, now: Moment, message: Message) {
        let Some(link) = self.links.get_mut(&(message.from, message.to)) else { return };
        link.count(message.body.payload().len());
        if let Some(transit) = link.transit() {
            self.agenda.post(now.plus(transit), Event::Arrive(message));
        }
    }

    fn arrive(&mut self, now: Moment, message: Message) -> Option<Job> {
        let link = self.links.get_mut(&(message.from, message.to))?;
        if link.settings.cut {
            link.lost += 1;
            return None;
        }
        if link.settings.clogged {
            link.held.push_back(message);
            return None;
        }
        let Message { from, to, call, body } = message;
        self.trace.record(now, [from, to], call, body.payload());
        match body {
            Body::Answer(answer) => {
                if let Some(pending) = self.calls.remove(&call) {
                    let _ = pending.reply.send(answer);
                }
                None
            }
            Body::Request { service, request, duplicate } => {
                self.receive(now, [from, to], call, service, request, duplicate)
            }
        }
    }

    /// A request has reached its node.
    fn receive(
        &mut self,
        now: Moment,
        [from, to]: [NodeId; 2],
        call: u64,
        service: ServiceName,
        request: Bytes,
        duplicate: bool,
    ) -> Option<Job> {
        match self.service(to, service) {
            Ok((home, incarnation, found)) => {
                if let Some(pending) = self.calls.get_mut(&call) {
                    pending.executing = true;
                }
                let link = self.links.get_mut(&(from, to))?;
                if !duplicate && let Some(later) = link.duplicate() {
                    let request = request.clone();
                    let body = Body::Request { service, request, duplicate: true };
                    let message = Message { from, to, call, body };
                    self.agenda.post(now.plus(later), Event::Arrive(message));
                }
                Some(Job::Call { home, incarnation, service: found, from, call, request })
            }
            Err(_) if duplicate => None,
            Err(error) => {
                let body = Body::Answer(Err(error));
                self.send(now, Message { from: to, to: from, call, body });
                None
            }
        }
    }

    /// A service where it runs at present.
    pub(super) fn service(
        &self,
        node: NodeId,
        service: ServiceName,
    ) -> Result<(Home, u64, Arc<dyn Service>), NetError> {
        let down = || NetError::unreachable(node, "the node is down");
        let member = self.members.get(&node).ok_or_else(down)?;
        let home = member.home.as_ref().ok_or_else(down)?;
        Ok((home.clone(), member.incarnation, home.service(service)?))
    }

    pub fn views(&self) -> Vec<LinkView> {
        let view = |(&(from, to), link): (&(NodeId, NodeId), &Link)| LinkView {
            from,
            to,
            settings: link.settings,
            messages: link.messages,
            bytes: link.bytes,
            lost: link.lost,
        };
        self.links.iter().map(view).collect()
    }

    /// Changes how a link treats messages from now on.
    pub fn set_link(&mut self, now: Moment, (from, to): (NodeId, NodeId), settings: LinkSettings) {
        let seed = self.seed;
        let link =
            self.links.entry((from, to)).or_insert_with(|| Link::new(settings, seed, from, to));
        link.settings = settings;
        if settings.is_stalled() {
            if settings.cut {
                link.lost += link.held.len() as u64;
                link.held.clear();
            }
            if link.stalled_since.is_none() {
                link.stalled_since = Some(now);
                let nodes = [from, to];
                self.agenda.post(now.plus(self.patience), Event::Expire { nodes });
            }
        } else if link.stalled_since.take().is_some() {
            for message in std::mem::take(&mut link.held) {
                let delay = link.delay();
                self.agenda.post(now.plus(delay), Event::Arrive(message));
            }
            self.resume_lanes(now, from, to);
        }
    }

    /// Since when nothing arrives in at least one direction between two nodes.
    pub(super) fn stalled_since(&self, [a, b]: [NodeId; 2]) -> Option<Moment> {
        let since = |key| self.links.get(&key).and_then(|link: &Link| link.stalled_since);
        [since((a, b)), since((b, a))].into_iter().flatten().min()
    }

    pub(super) fn trace_item(&mut self, now: Moment, nodes: [NodeId; 2], stream: u64, item: &Item) {
        self.trace.record(now, nodes, stream, item.payload());
    }
}

/// A hash of everything that was delivered: FNV-1a over times, nodes, numbers and bytes.
#[derive(Debug)]
pub(super) struct Trace {
    enabled: bool,
    hash: u64,
}

impl Trace {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;

    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn record(&mut self, now: Moment, [from, to]: [NodeId; 2], id: u64, payload: &[u8]) {
        if !self.enabled {
            return;
        }
        for word in [now.as_nanos(), from.get(), to.get(), id, payload.len() as u64] {
            self.absorb(&word.to_le_bytes());
        }
        self.absorb(payload);
    }

    fn absorb(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(Self::PRIME);
        }
    }
}
