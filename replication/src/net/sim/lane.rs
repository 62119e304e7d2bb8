//! Streams on the simulated network: two lanes, each a queue of messages with their times of
//! arrival, which never decrease. Only the first message of a lane is on the agenda.

use std::collections::VecDeque;
use std::sync::Arc;

use meridian_storage::NodeId;
use meridian_truetime::env::Moment;

use super::wire::{Event, Job, Wire};
use crate::net::local::Home;
use crate::net::stream::{self, Frame, Gate, Inlet, Outlet};
use crate::net::{Incoming, NetError, Outgoing, Service, ServiceName};

/// Whose lane: the one on which this end of the stream sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Opener = 0,
    Service = 1,
}

impl Side {
    const BOTH: [Side; 2] = [Side::Opener, Side::Service];

    fn other(self) -> Side {
        match self {
            Side::Opener => Side::Service,
            Side::Service => Side::Opener,
        }
    }
}

#[derive(Debug)]
pub(super) enum Item {
    Open(ServiceName),
    Frame(Frame),
    End,
    /// The stream is over for its receiver, and so altogether.
    Reset(NetError),
}

impl Item {
    pub fn payload(&self) -> &[u8] {
        match self {
            Self::Frame(frame) => &frame.bytes,
            Self::Open(_) | Self::End | Self::Reset(_) => &[],
        }
    }
}

/// One end of a stream, at its node.
#[derive(Debug)]
struct End {
    node: NodeId,
    gate: Option<Arc<Gate>>,
    inlet: Option<Inlet>,
    /// It sends nothing more, whatever it tries.
    gone: bool,
}

impl End {
    fn break_off(&mut self, error: &NetError) {
        if let Some(inlet) = self.inlet.take() {
            inlet.put(Err(error.clone()));
        }
        if let Some(gate) = self.gate.take() {
            gate.shut(error.clone());
        }
    }
}

#[derive(Debug)]
struct Lane {
    queue: VecDeque<(Moment, Item)>,
    last_arrival: Moment,
    /// The event on the agenda that looks at this lane again.
    wake: Option<Moment>,
}

impl Lane {
    const fn new() -> Self {
        Self { queue: VecDeque::new(), last_arrival: Moment::START, wake: None }
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    opened: Moment,
    ends: [End; 2],
    lanes: [Lane; 2],
}

impl Stream {
    /// The nodes from and to which a side sends.
    fn nodes(&self, side: Side) -> [NodeId; 2] {
        [self.ends[side as usize].node, self.ends[side.other() as usize].node]
    }
}

/// A stream that has reached its service, with all that its tasks need.
pub(super) struct Opening {
    pub stream: u64,
    pub home: Home,
    pub service: Arc<dyn Service>,
    pub from: NodeId,
    pub incoming: Incoming,
    pub outgoing: Outgoing,
    pub outlet: Outlet,
    pub last_word: Inlet,
}

impl Wire {
    /// Opens a stream; the number is for [`Wire::push`].
    pub fn open(
        &mut self,
        now: Moment,
        [from, to]: [NodeId; 2],
        service: ServiceName,
        gate: Arc<Gate>,
        inlet: Inlet,
    ) -> u64 {
        let opener = End { node: from, gate: Some(gate), inlet: Some(inlet), gone: false };
        let server = End { node: to, gate: None, inlet: None, gone: false };
        let ends = [opener, server];
        let id = self.next_id();
        self.streams.insert(id, Stream { opened: now, ends, lanes: [Lane::new(), Lane::new()] });
        if self.stalled_since([from, to]).is_some() {
            self.agenda.post(now.plus(self.patience), Event::Expire { nodes: [from, to] });
        }
        self.push(now, id, Side::Opener, Item::Open(service));
        id
    }

    /// Sends the next thing on a lane.
    pub fn push(&mut self, now: Moment, id: u64, side: Side, item: Item) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.ends[side as usize].gone {
            return;
        }
        let [from, to] = stream.nodes(side);
        let back = self.links.get(&(to, from)).map(|link| link.settings.latency);
        let Some(link) = self.links.get_mut(&(from, to)) else { return };
        if let Item::Frame(frame) = &item {
            link.count(frame.bytes.len());
        }
        let arrival = now.plus(link.stream_delay(back.unwrap_or_default()));
        let stalled = link.settings.is_stalled();
        let lane = &mut stream.lanes[side as usize];
        lane.last_arrival = lane.last_arrival.max(arrival);
        lane.queue.push_back((lane.last_arrival, item));
        if !stalled {
            self.schedule(id, side);
        }
    }

    /// Puts the first message of a lane on the agenda, if it isn't yet.
    fn schedule(&mut self, id: u64, side: Side) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let lane = &mut stream.lanes[side as usize];
        if let Some((at, _)) = lane.queue.front()
            && lane.wake.is_none_or(|wake| wake > *at)
        {
            lane.wake = Some(*at);
            self.agenda.post(*at, Event::Wake { stream: id, side });
        }
    }

    /// Delivers what is due on a lane.
    pub(super) fn wake(&mut self, now: Moment, at: Moment, id: u64, side: Side) -> Option<Job> {
        let stream = self.streams.get_mut(&id)?;
        let nodes @ [from, to] = stream.nodes(side);
        let lane = &mut stream.lanes[side as usize];
        if lane.wake != Some(at) {
            return None; // A later look at the lane has replaced this one.
        }
        lane.wake = None;
        if self.links.get(&(from, to)).is_none_or(|link| link.settings.is_stalled()) {
            return None;
        }
        let mut job = None;
        while let Some(stream) = self.streams.get_mut(&id) {
            let queue = &mut stream.lanes[side as usize].queue;
            let Some((_, item)) = queue.pop_front_if(|(due, _)| *due <= now) else { break };
            self.trace_item(now, nodes, id, &item);
            match item {
                Item::Open(service) => job = self.accept(now, id, service),
                other => self.deliver(id, side, other),
            }
        }
        self.schedule(id, side);
        job
    }

    fn accept(&mut self, now: Moment, id: u64, service: ServiceName) -> Option<Job> {
        let [from, to] = self.streams.get(&id)?.nodes(Side::Opener);
        match self.service(to, service) {
            Err(error) => {
                self.push(now, id, Side::Service, Item::Reset(error));
                None
            }
            Ok((home, _, service)) => {
                let (outgoing, outlet, last_word) = stream::outgoing(from);
                let (inlet, incoming) = stream::incoming(from);
                let end = &mut self.streams.get_mut(&id)?.ends[Side::Service as usize];
                end.gate = Some(Arc::clone(&outlet.gate));
                end.inlet = Some(inlet);
                let opening = Opening {
                    stream: id,
                    home,
                    service,
                    from,
                    incoming,
                    outgoing,
                    outlet,
                    last_word,
                };
                Some(Job::Stream(opening))
            }
        }
    }

    fn deliver(&mut self, id: u64, side: Side, item: Item) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let sender = stream.ends[side as usize].node;
        let receiver = &mut stream.ends[side.other() as usize];
        match item {
            Item::Open(_) => {}
            Item::Frame(frame) => {
                if let Some(inlet) = &receiver.inlet {
                    inlet.put(Ok(frame));
                }
            }
            Item::End => {
                receiver.inlet = None;
                if side == Side::Service {
                    let over = NetError::broken(sender, "the service has ended the stream");
                    receiver.break_off(&over);
                    self.streams.remove(&id);
                }
            }
            Item::Reset(error) => {
                receiver.break_off(&error);
                self.streams.remove(&id);
            }
        }
    }

    /// One end gives the stream up, and tells the other.
    fn abandon(&mut self, now: Moment, id: u64, side: Side, here: &NetError, there: NetError) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.ends[side as usize].break_off(here);
        stream.lanes[side.other() as usize].queue.clear();
        self.push(now, id, side, Item::Reset(there));
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.ends[side as usize].gone = true;
            if stream.ends.iter().all(|end| end.gone) {
                self.streams.remove(&id);
            }
        }
    }

    /// The opener has dropped its receiving half.
    pub fn cancel(&mut self, now: Moment, id: u64) {
        let Some(stream) = self.streams.get(&id) else { return };
        let [opener, server] = stream.nodes(Side::Opener);
        let here = NetError::broken(server, "the stream was cancelled");
        let there = NetError::broken(opener, "the opener cancelled the stream");
        self.abandon(now, id, Side::Opener, &here, there);
    }

    /// A node has stopped. A stream that hasn't reached it yet goes on to what it finds there.
    pub(super) fn break_streams_of(&mut self, now: Moment, node: NodeId) {
        let mut ends = Vec::new();
        for (id, stream) in &self.streams {
            for side in Side::BOTH {
                let end = &stream.ends[side as usize];
                let reached = side == Side::Opener || end.gate.is_some() || end.inlet.is_some();
                if end.node == node && !end.gone && reached {
                    ends.push((*id, side, stream.nodes(side)[1]));
                }
            }
        }
        for (id, side, peer) in ends {
            let here = NetError::broken(peer, "this node has stopped");
            self.abandon(now, id, side, &here, NetError::broken(node, "the node stopped"));
        }
    }

    /// Streams between the two nodes break if they have been stalled for too long.
    pub(super) fn expire(&mut self, now: Moment, nodes: [NodeId; 2]) {
        let Some(since) = self.stalled_since(nodes) else { return };
        let patience = self.patience;
        let hopeless = |stream: &Stream| {
            let [a, b] = stream.nodes(Side::Opener);
            let between = nodes == [a, b] || nodes == [b, a];
            between && since.max(stream.opened).plus(patience) <= now
        };
        let ids = self.streams.iter().filter(|(_, stream)| hopeless(stream)).map(|(id, _)| *id);
        for id in ids.collect::<Vec<_>>() {
            if let Some(mut stream) = self.streams.remove(&id) {
                for side in Side::BOTH {
                    let [_, peer] = stream.nodes(side);
                    let error = NetError::broken(peer, "the link was stalled for too long");
                    stream.ends[side as usize].break_off(&error);
                }
            }
        }
    }

    /// A link carries again: everything that it held up starts again.
    pub(super) fn resume_lanes(&mut self, now: Moment, from: NodeId, to: NodeId) {
        let mut resumed = Vec::new();
        for (id, stream) in &mut self.streams {
            for side in Side::BOTH {
                if stream.nodes(side) != [from, to] {
                    continue;
                }
                let Some(link) = self.links.get_mut(&(from, to)) else { continue };
                let lane = &mut stream.lanes[side as usize];
                let mut last = now;
                for (at, _) in &mut lane.queue {
                    last = last.max(*at).max(now.plus(link.delay()));
                    *at = last;
                }
                lane.last_arrival = lane.last_arrival.max(last);
                resumed.push((*id, side));
            }
        }
        for (id, side) in resumed {
            self.schedule(id, side);
        }
    }
}
