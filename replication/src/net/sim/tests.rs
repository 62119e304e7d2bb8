//! The simulated network in virtual time: latencies to the microsecond, every fault, flow control.

use std::collections::BTreeMap;

use meridian_truetime::NodeEnvironment;
use meridian_truetime::env::{CostModel, Environment};

use super::*;
use crate::net::{STREAM_WINDOW, Service, ServiceError};

const ECHO: ServiceName = "echo";
const SECOND: Duration = Duration::from_secs(1);

/// Answers with the request. On a stream: echoes; "fail" makes it fail, "count" makes it count to
/// the number that follows as fast as it can, "deaf" makes it sleep without reading.
#[derive(Default)]
struct Echo {
    env: Option<Env>,
    calls: Mutex<Vec<(NodeId, Bytes)>>,
    /// What became of the last stream: what the service read last, or how its sending failed.
    ending: Mutex<Option<String>>,
}

impl Echo {
    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn ending(&self) -> Option<String> {
        self.ending.lock().unwrap().clone()
    }

    fn end(&self, how: impl fmt::Display) {
        *self.ending.lock().unwrap() = Some(how.to_string());
    }

    async fn count(&self, outgoing: &Outgoing, numbers: u32) {
        for number in 0..numbers {
            if let Err(error) = outgoing.send(Bytes::from(number.to_string())).await {
                return self.end(error);
            }
        }
    }
}

#[async_trait]
impl Service for Echo {
    async fn call(&self, from: NodeId, request: Bytes) -> Result<Bytes, ServiceError> {
        self.calls.lock().unwrap().push((from, request.clone()));
        match &request[..] {
            b"refuse" => Err(ServiceError::new("as you wish")),
            b"panic" => panic!("as you wish"),
            b"sleep" => {
                self.env.as_ref().unwrap().sleep(SECOND).await;
                Ok(request)
            }
            _ => Ok(request),
        }
    }

    async fn stream(
        &self,
        _: NodeId,
        mut incoming: Incoming,
        outgoing: Outgoing,
    ) -> Result<(), ServiceError> {
        while let Some(message) = incoming.next().await {
            let message = match message {
                Ok(message) => String::from_utf8(message.to_vec()).unwrap(),
                Err(error) => {
                    self.end(error);
                    return Ok(());
                }
            };
            match message.split_once(' ').unwrap_or((&message, "")) {
                ("fail", _) => return Err(ServiceError::new("as you wish")),
                ("panic", _) => panic!("as you wish"),
                ("count", numbers) => self.count(&outgoing, numbers.parse().unwrap()).await,
                ("deaf", _) => self.env.as_ref().unwrap().sleep(100 * SECOND).await,
                ("await-close", _) => self.end(outgoing.closed().await),
                _ => {
                    let _ = outgoing.send(Bytes::from(message)).await;
                }
            }
        }
        self.ending.lock().unwrap().get_or_insert("end".to_owned());
        Ok(())
    }
}

struct Node {
    env: Arc<NodeEnvironment>,
    transport: Arc<dyn Transport>,
    echo: Arc<Echo>,
}

impl Node {
    async fn call(&self, to: u64, request: &'static str) -> Result<Bytes, NetError> {
        let request = Bytes::from_static(request.as_bytes());
        self.transport.call(NodeId::new(to), ECHO, request, SECOND).await
    }

    async fn open(&self, to: u64) -> (Outgoing, Incoming) {
        self.transport.open(NodeId::new(to), ECHO).await.expect("an opened stream")
    }
}

/// Nodes 1 to 3 in us-east, us-west, eu-west (round trips: 66, 64, 146 ms).
struct Cluster {
    world: World,
    network: SimulatedNetwork,
    nodes: BTreeMap<u64, Node>,
    /// The services of all lives of all nodes so far.
    echoes: Vec<Arc<Echo>>,
}

impl Cluster {
    fn new(world: &World, topology: &str) -> Self {
        let topology = Topology::load(topology).unwrap();
        let network = SimulatedNetwork::new(world, topology);
        let mut cluster =
            Self { world: world.clone(), network, nodes: BTreeMap::new(), echoes: Vec::new() };
        for id in 1..=3 {
            cluster.start(id);
        }
        cluster
    }

    fn start(&mut self, id: u64) {
        let env = self.world.node(self.echoes.len() as u64 + 1);
        let echo = Arc::new(Echo { env: Some(env.clone()), ..Echo::default() });
        self.echoes.push(echo.clone());
        let registry = Registry::new();
        registry.register(ECHO, echo.clone());
        let index = usize::try_from(id - 1).unwrap();
        let region = self.network.topology().regions()[index].clone();
        let transport =
            self.network.add_node(NodeId::new(id), &region, env.clone(), registry).unwrap();
        self.nodes.insert(id, Node { env, transport, echo });
    }

    fn crash(&self, id: u64) {
        self.network.stop_node(NodeId::new(id));
        self.nodes[&id].env.halt();
    }

    fn link(&self, from: u64, to: u64, change: impl FnOnce(&mut LinkSettings)) {
        self.network.update_link(NodeId::new(from), NodeId::new(to), change);
    }

    fn cut(&self, a: u64, b: u64) {
        self.network.cut(NodeId::new(a), NodeId::new(b));
    }

    fn micros(&self) -> u64 {
        self.world.moment().as_nanos() / 1_000
    }

    async fn sleep(&self, duration: Duration) {
        self.nodes[&2].env.sleep(duration).await;
    }
}

/// Runs a scenario on three nodes in virtual time.
fn simulate<T: Future>(seed: u64, scenario: impl FnOnce(Cluster) -> T) -> T::Output {
    World::run_virtual(seed, CostModel::default(), |world| {
        let cluster = Cluster::new(&world, "us-eu-3");
        scenario(cluster)
    })
}

fn text(message: Option<Result<Bytes, NetError>>) -> String {
    let message = message.expect("no end").expect("no error");
    String::from_utf8(message.to_vec()).unwrap()
}

#[test]
fn a_call_takes_exactly_the_round_trip() {
    simulate(1, |cluster| async move {
        assert_eq!(cluster.nodes[&1].call(3, "hello").await.unwrap(), "hello");
        assert_eq!(cluster.micros(), 64_000);
        assert_eq!(cluster.nodes[&3].call(2, "hello").await.unwrap(), "hello");
        assert_eq!(cluster.micros(), 64_000 + 146_000);
        assert_eq!(cluster.nodes[&2].echo.calls.lock().unwrap()[0].0, NodeId::new(3));
    });
}

#[test]
fn a_thousand_calls_at_once_take_one_round_trip() {
    simulate(1, |cluster| async move {
        let node = &cluster.nodes[&1];
        let calls = (0..1_000).map(|_| node.call(2, "hello"));
        assert!(futures::future::join_all(calls).await.iter().all(Result::is_ok));
        assert_eq!(cluster.micros(), 66_000);
        let views = cluster.network.links();
        let link = views.iter().find(|link| (link.from.get(), link.to.get()) == (1, 2)).unwrap();
        assert_eq!((link.messages, link.bytes, link.lost), (1_000, 5_000, 0));
    });
}

#[test]
fn without_latency_no_time_passes() {
    World::run_virtual(1, CostModel::default(), |world| async move {
        let cluster = Cluster::new(&world, "local");
        assert_eq!(cluster.nodes[&1].call(3, "hello").await.unwrap(), "hello");
        let (outgoing, mut incoming) = cluster.nodes[&1].open(2).await;
        for _ in 0..10 {
            outgoing.send(Bytes::from_static(b"x")).await.unwrap();
            assert_eq!(text(incoming.next().await), "x");
        }
        assert_eq!(cluster.micros(), 0);
    });
}

#[test]
fn calls_and_streams_to_oneself_take_no_time() {
    simulate(1, |cluster| async move {
        let node = &cluster.nodes[&1];
        assert_eq!(node.call(1, "hello").await.unwrap(), "hello");
        let refused = node.call(1, "refuse").await.unwrap_err();
        assert_eq!(refused.to_string(), "node n1 refused: as you wish");
        let (outgoing, mut incoming) = node.open(1).await;
        outgoing.send(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(text(incoming.next().await), "x");
        drop(outgoing);
        assert_eq!(incoming.next().await, None);
        let (outgoing, mut incoming) = node.open(1).await;
        outgoing.send(Bytes::from_static(b"fail")).await.unwrap();
        assert!(matches!(incoming.next().await, Some(Err(NetError::Remote { .. }))));
        assert_eq!(incoming.next().await, None);
        assert!(outgoing.send(Bytes::new()).await.is_err());
        assert_eq!(cluster.micros(), 0);
    });
}

#[test]
fn work_is_priced_at_the_node_that_serves() {
    let cost = CostModel { request: Duration::from_millis(3), ..CostModel::default() };
    World::run_virtual(1, cost, |world| async move {
        let cluster = Cluster::new(&world, "us-eu-3");
        cluster.nodes[&1].call(3, "hello").await.unwrap();
        assert_eq!(cluster.micros(), 67_000);
    });
}

#[test]
fn errors_say_what_is_certain() {
    simulate(1, |cluster| async move {
        let node = &cluster.nodes[&1];
        let refused = node.call(2, "refuse").await.unwrap_err();
        let error = ServiceError::new("as you wish");
        assert_eq!(refused, NetError::Remote { from: NodeId::new(2), error });

        let panicked = node.call(2, "panic").await.unwrap_err();
        assert!(matches!(panicked, NetError::Broken { .. }), "{panicked}");

        let absent =
            node.transport.call(NodeId::new(2), "absent", Bytes::new(), SECOND).await.unwrap_err();
        assert_eq!(absent.to_string(), "node n2 offers no service \"absent\"");
        assert!(absent.certainly_not_executed());

        let nobody = node.call(9, "hello").await.unwrap_err();
        assert!(nobody.certainly_not_executed(), "{nobody}");

        let large = Bytes::from(vec![0; crate::net::MAX_MESSAGE + 1]);
        let large = node.transport.call(NodeId::new(2), ECHO, large, SECOND).await.unwrap_err();
        assert!(matches!(large, NetError::TooLarge { .. }), "{large}");
    });
}

#[test]
fn a_stopped_node_refuses_after_a_round_trip_and_serves_again_when_started() {
    simulate(1, |mut cluster| async move {
        cluster.crash(3);
        let error = cluster.nodes[&1].call(3, "hello").await.unwrap_err();
        assert!(matches!(error, NetError::Unreachable { .. }), "{error}");
        assert_eq!(cluster.micros(), 64_000);
        let own = cluster.nodes[&3].call(1, "hello").await.unwrap_err();
        assert!(matches!(own, NetError::Unreachable { .. }), "{own}");

        cluster.start(3);
        assert!(cluster.network.is_running(NodeId::new(3)));
        assert_eq!(cluster.nodes[&1].call(3, "hello").await.unwrap(), "hello");
        assert_eq!(cluster.nodes[&3].call(1, "hello").await.unwrap(), "hello");
    });
}

#[test]
fn calls_of_a_node_that_stops_are_unknown() {
    simulate(1, |cluster| async move {
        let (to_it, from_it) =
            tokio::join!(cluster.nodes[&1].call(3, "sleep"), cluster.nodes[&3].call(2, "sleep"),);
        assert!(to_it.is_err() && from_it.is_err(), "both take longer than their deadline");

        let before = cluster.micros();
        let crash = async {
            cluster.sleep(Duration::from_millis(100)).await;
            cluster.network.stop_node(NodeId::new(3));
        };
        let own = async {
            let result = cluster.nodes[&3].call(2, "sleep").await;
            (result, cluster.micros() - before)
        };
        let ours = async {
            let result = cluster.nodes[&1].call(3, "sleep").await;
            (result, cluster.micros() - before)
        };
        let ((), (own, own_at), (ours, ours_at)) = tokio::join!(crash, own, ours);
        assert!(matches!(own, Err(NetError::Broken { .. })), "{own:?}");
        assert_eq!(own_at, 100_000);
        assert!(matches!(ours, Err(NetError::Broken { .. })), "{ours:?}");
        assert_eq!(ours_at, 132_000);
    });
}

#[test]
fn a_lost_message_shows_at_the_deadline() {
    simulate(1, |cluster| async move {
        cluster.link(1, 2, |link| link.loss = 1.0);
        let error = cluster.nodes[&1].call(2, "hello").await.unwrap_err();
        let expected = NetError::DeadlineExceeded { to: NodeId::new(2), deadline: SECOND };
        assert_eq!(error, expected);
        assert_eq!(cluster.micros(), 1_000_000);
        assert_eq!(cluster.nodes[&2].echo.calls(), 0);

        cluster.network.heal();
        cluster.link(2, 1, |link| link.loss = 1.0);
        assert_eq!(cluster.nodes[&1].call(2, "hello").await.unwrap_err(), expected);
        assert_eq!(cluster.nodes[&2].echo.calls(), 1);
    });
}

#[test]
fn loss_happens_about_as_often_as_it_should() {
    simulate(7, |cluster| async move {
        cluster.link(1, 2, |link| link.loss = 0.25);
        let node = &cluster.nodes[&1];
        let calls = (0..1_000).map(|_| node.call(2, "hello"));
        let lost = futures::future::join_all(calls).await.iter().filter(|r| r.is_err()).count();
        assert!((200..300).contains(&lost), "{lost}");
        let views = cluster.network.links();
        let link = views.iter().find(|link| (link.from.get(), link.to.get()) == (1, 2)).unwrap();
        assert_eq!(link.lost, lost as u64);
    });
}

#[test]
fn a_duplicated_call_is_executed_twice_and_answered_once() {
    simulate(1, |cluster| async move {
        cluster.link(1, 2, |link| link.duplication = 1.0);
        assert_eq!(cluster.nodes[&1].call(2, "hello").await.unwrap(), "hello");
        assert_eq!(cluster.micros(), 66_000);
        cluster.sleep(SECOND).await;
        assert_eq!(cluster.nodes[&2].echo.calls(), 2);
    });
}

#[test]
fn jitter_and_reordering_delay_within_their_bounds() {
    simulate(1, |cluster| async move {
        cluster.link(1, 2, |link| link.jitter = Duration::from_millis(10));
        let node = &cluster.nodes[&1];
        for _ in 0..100 {
            let start = cluster.micros();
            node.call(2, "hello").await.unwrap();
            let took = cluster.micros() - start;
            assert!((66_000..=76_001).contains(&took), "{took}");
        }
        cluster.network.heal();
        cluster.link(1, 2, |link| {
            link.jitter = Duration::ZERO;
            link.reordering = 0.5;
        });
        let names: Vec<String> = (0..50).map(|number| number.to_string()).collect();
        let calls = names.iter().map(|name| {
            let request = Bytes::from(name.clone());
            node.transport.call(NodeId::new(2), ECHO, request, SECOND)
        });
        futures::future::join_all(calls).await;
        let seen = cluster.nodes[&2].echo.calls.lock().unwrap().split_off(100);
        let order: Vec<_> =
            seen.iter().map(|(_, request)| String::from_utf8_lossy(request).into_owned()).collect();
        assert_eq!(order.len(), 50);
        assert_ne!(order, names);
    });
}

#[test]
fn a_cut_link_loses_calls_even_under_way_until_it_is_healed() {
    simulate(1, |cluster| async move {
        let cut = async {
            cluster.sleep(Duration::from_millis(20)).await;
            cluster.network.cut_one_way(NodeId::new(1), NodeId::new(2));
        };
        let (under_way, ()) = tokio::join!(cluster.nodes[&1].call(2, "hello"), cut);
        assert!(matches!(under_way, Err(NetError::DeadlineExceeded { .. })));
        let other_way = cluster.nodes[&2].call(1, "hello").await;
        assert!(matches!(other_way, Err(NetError::DeadlineExceeded { .. })), "no answer");
        assert_eq!(cluster.nodes[&1].echo.calls(), 1);
        assert_eq!(cluster.nodes[&2].echo.calls(), 0);
        cluster.network.heal();
        assert_eq!(cluster.nodes[&1].call(2, "hello").await.unwrap(), "hello");
    });
}

#[test]
fn a_clogged_link_drains() {
    simulate(1, |cluster| async move {
        cluster.network.clog(NodeId::new(1), NodeId::new(2));
        let drain = async {
            cluster.sleep(Duration::from_millis(500)).await;
            assert_eq!(cluster.nodes[&2].echo.calls(), 0);
            cluster.network.drain(NodeId::new(1), NodeId::new(2));
        };
        let node = &cluster.nodes[&1];
        let (first, second, ()) =
            tokio::join!(node.call(2, "first"), node.call(2, "second"), drain);
        assert_eq!((first.unwrap(), second.unwrap()), ("first".into(), "second".into()));
        assert_eq!(cluster.micros(), 566_000);
        let seen = cluster.nodes[&2].echo.calls.lock().unwrap().clone();
        assert_eq!(seen[0].1, "first");
    });
}

#[test]
fn a_stream_echoes_in_one_round_trip_from_its_opening() {
    simulate(1, |cluster| async move {
        let (outgoing, mut incoming) = cluster.nodes[&1].open(3).await;
        outgoing.send(Bytes::from_static(b"a")).await.unwrap();
        outgoing.send(Bytes::from_static(b"b")).await.unwrap();
        assert_eq!(text(incoming.next().await), "a");
        assert_eq!(text(incoming.next().await), "b");
        assert_eq!(cluster.micros(), 64_000);
        drop(outgoing);
        assert_eq!(incoming.next().await, None);
        assert_eq!(cluster.micros(), 128_000);
        assert_eq!(cluster.nodes[&3].echo.ending().as_deref(), Some("end"));
    });
}

#[test]
fn a_stream_stays_in_order_and_whole_on_a_bad_link() {
    simulate(3, |cluster| async move {
        for (from, to) in [(1, 2), (2, 1)] {
            cluster.link(from, to, |link| {
                link.loss = 0.1;
                link.jitter = Duration::from_millis(50);
                link.reordering = 0.3;
                link.duplication = 0.3;
            });
        }
        let (outgoing, mut incoming) = cluster.nodes[&1].open(2).await;
        outgoing.send(Bytes::from_static(b"count 1000")).await.unwrap();
        drop(outgoing);
        for number in 0..1_000 {
            assert_eq!(text(incoming.next().await), number.to_string());
        }
        assert_eq!(incoming.next().await, None);
    });
}

#[test]
fn a_lost_message_delays_what_is_behind_it() {
    simulate(1, |cluster| async move {
        let (outgoing, mut incoming) = cluster.nodes[&1].open(3).await;
        outgoing.send(Bytes::from_static(b"a")).await.unwrap();
        assert_eq!(text(incoming.next().await), "a");
        let start = cluster.micros();
        cluster.link(1, 3, |link| link.loss = 1.0);
        outgoing.send(Bytes::from_static(b"b")).await.unwrap();
        cluster.sleep(Duration::from_millis(1)).await;
        cluster.network.heal();
        outgoing.send(Bytes::from_static(b"c")).await.unwrap();
        assert_eq!(text(incoming.next().await), "b");
        assert_eq!(cluster.micros() - start, 64_000 + 16 * 200_000);
        assert_eq!(text(incoming.next().await), "c");
        assert_eq!(cluster.micros() - start, 64_000 + 16 * 200_000);
    });
}

#[test]
fn a_stream_stalls_on_a_cut_link_and_goes_on_when_it_is_healed_in_time() {
    simulate(1, |cluster| async move {
        let (outgoing, mut incoming) = cluster.nodes[&1].open(3).await;
        cluster.cut(1, 3);
        for number in 0..3 {
            outgoing.send(Bytes::from(number.to_string())).await.unwrap();
        }
        cluster.sleep(4 * SECOND).await;
        cluster.network.heal();
        for number in 0..3 {
            assert_eq!(text(incoming.next().await), number.to_string());
        }
        assert_eq!(cluster.micros(), 4_064_000);
        cluster.sleep(10 * SECOND).await;
        outgoing.send(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(text(incoming.next().await), "x");
    });
}

#[test]
fn a_stream_breaks_on_both_sides_when_it_is_stalled_for_too_long() {
    simulate(1, |cluster| async move {
        let (outgoing, mut incoming) = cluster.nodes[&1].open(3).await;
        outgoing.send(Bytes::from_static(b"a")).await.unwrap();
        assert_eq!(text(incoming.next().await), "a");
        cluster.network.cut_one_way(NodeId::new(3), NodeId::new(1));
        cluster.sleep(3 * SECOND).await;
        let (_late_outgoing, mut late_incoming) = cluster.nodes[&1].open(3).await;
        let broken = incoming.next().await.unwrap().unwrap_err();
        assert!(matches!(broken, NetError::Broken { .. }), "{broken}");
        assert_eq!(cluster.micros(), 5_064_000);
        assert!(outgoing.send(Bytes::new()).await.is_err());
        cluster.sleep(Duration::ZERO).await;
        assert!(cluster.nodes[&3].echo.ending().unwrap().contains("stalled"));
        // A stream opened while the link is stalled has its own patience.
        assert!(late_incoming.next().await.unwrap().is_err());
        assert_eq!(cluster.micros(), 8_064_000);
    });
}

#[test]
fn a_stream_to_a_node_that_is_down_is_unreachable_after_a_round_trip() {
    simulate(1, |cluster| async move {
        cluster.crash(3);
        let (outgoing, mut incoming) = cluster.nodes[&1].open(3).await;
        outgoing.send(Bytes::from_static(b"a")).await.unwrap();
        let error = incoming.next().await.unwrap().unwrap_err();
        assert!(error.certainly_not_executed(), "{error}");
        assert_eq!(cluster.micros(), 64_000);
        assert_eq!(outgoing.send(Bytes::new()).await.unwrap_err(), error);
        assert_eq!(incoming.next().await, None);

        let to = NodeId::new(2);
        let (_outgoing, mut incoming) =
            cluster.nodes[&1].transport.open(to, "absent").await.unwrap();
        let error = incoming.next().await.unwrap().unwrap_err();
        assert!(matches!(error, NetError::NoSuchService { .. }), "{error}");
    });
}

#[test]
fn streams_of_a_node_that_stops_break() {
    simulate(1, |cluster| async move {
        let (outgoing, mut incoming) = cluster.nodes[&1].open(3).await;
        let (_theirs, mut their_incoming) = cluster.nodes[&3].open(2).await;
        outgoing.send(Bytes::from_static(b"count 3")).await.unwrap();
        for number in 0..3 {
            assert_eq!(text(incoming.next().await), number.to_string());
        }
        cluster.sleep(SECOND).await;
        let start = cluster.micros();
        cluster.network.stop_node(NodeId::new(3));
        let error = their_incoming.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("this node has stopped"), "{error}");
        assert_eq!(cluster.micros(), start);
        cluster.nodes[&3].env.halt();

        let error = incoming.next().await.unwrap().unwrap_err();
        assert!(matches!(error, NetError::Broken { .. }), "{error}");
        assert_eq!(cluster.micros() - start, 32_000);
        assert!(outgoing.send(Bytes::new()).await.is_err());
        // The service at n2 of the stream that n3 had opened.
        cluster.sleep(SECOND).await;
        assert!(cluster.nodes[&2].echo.ending().unwrap().contains("the node stopped"));
    });
}

#[test]
fn a_service_that_fails_or_panics_never_ends_its_stream_cleanly() {
    simulate(1, |cluster| async move {
        let node = &cluster.nodes[&1];
        let (outgoing, mut incoming) = node.open(2).await;
        outgoing.send(Bytes::from_static(b"a")).await.unwrap();
        outgoing.send(Bytes::from_static(b"fail")).await.unwrap();
        assert_eq!(text(incoming.next().await), "a");
        let error = incoming.next().await.unwrap().unwrap_err();
        assert!(matches!(error, NetError::Remote { .. }), "{error}");
        assert_eq!(incoming.next().await, None);

        let (outgoing, mut incoming) = node.open(2).await;
        outgoing.send(Bytes::from_static(b"panic")).await.unwrap();
        let error = incoming.next().await.unwrap().unwrap_err();
        assert!(matches!(error, NetError::Broken { .. }), "{error}");
    });
}

#[test]
fn a_writer_waits_for_a_reader_that_does_not_read() {
    simulate(1, |cluster| async move {
        let (outgoing, _incoming) = cluster.nodes[&1].open(2).await;
        outgoing.send(Bytes::from_static(b"deaf")).await.unwrap();
        let mut sent = 0;
        let message = Bytes::from(vec![0; 10_000]);
        let flood = async {
            loop {
                outgoing.send(message.clone()).await.unwrap();
                sent += message.len();
            }
        };
        let env = &cluster.nodes[&1].env;
        assert!(env.timeout(10 * SECOND, flood).await.is_err(), "it must block");
        assert!((STREAM_WINDOW - 20_000..=STREAM_WINDOW).contains(&sent), "{sent}");

        // A message larger than the window passes alone; the window spans the way back too.
        let (outgoing, mut incoming) = cluster.nodes[&1].open(2).await;
        let large = "x".repeat(2 * STREAM_WINDOW);
        outgoing.send(Bytes::from(large.clone())).await.unwrap();
        outgoing.send(Bytes::from(large.clone())).await.unwrap();
        assert_eq!(text(incoming.next().await), large);
        assert_eq!(text(incoming.next().await), large);
    });
}

#[test]
fn a_writer_that_waits_for_room_learns_that_the_stream_is_over() {
    simulate(1, |cluster| async move {
        let (outgoing, incoming) = cluster.nodes[&1].open(2).await;
        outgoing.send(Bytes::from_static(b"count 1000000000")).await.unwrap();
        cluster.sleep(SECOND).await;
        assert_eq!(cluster.nodes[&2].echo.ending(), None, "it waits");
        drop(incoming);
        cluster.sleep(SECOND).await;
        assert!(cluster.nodes[&2].echo.ending().unwrap().contains("cancelled"));
        assert!(outgoing.send(Bytes::new()).await.is_err());
    });
}

#[test]
fn a_service_can_wait_for_its_opener_to_go() {
    simulate(1, |cluster| async move {
        let (outgoing, incoming) = cluster.nodes[&1].open(2).await;
        outgoing.send(Bytes::from_static(b"await-close")).await.unwrap();
        drop(outgoing);
        cluster.sleep(SECOND).await;
        assert_eq!(cluster.nodes[&2].echo.ending(), None);
        drop(incoming);
        cluster.sleep(SECOND).await;
        assert!(cluster.nodes[&2].echo.ending().unwrap().contains("cancelled"));
    });
}

/// Traffic of all kinds under all faults at once, and what came of it.
fn turmoil(seed: u64) -> (u64, Vec<String>) {
    simulate(seed, |mut cluster| async move {
        for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)] {
            cluster.link(from, to, |link| {
                link.jitter = Duration::from_millis(7);
                link.loss = 0.05;
                link.duplication = 0.05;
                link.reordering = 0.1;
            });
        }
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        for (from, to) in [(1, 2), (2, 3), (3, 1)] {
            let (node, outcomes) = (&cluster.nodes[&from], Arc::clone(&outcomes));
            let (transport, env) = (Arc::clone(&node.transport), Arc::clone(&node.env));
            let (outgoing, mut incoming) = node.open(to).await;
            node.env.spawn(async move {
                for round in 0..40 {
                    let request = Bytes::from(round.to_string());
                    let _ = outgoing.send(request.clone()).await;
                    let call = transport.call(NodeId::new(to), ECHO, request, SECOND / 2);
                    let outcome = format!("{from} {round} {:?} {:?}", call.await, env.moment());
                    outcomes.lock().unwrap().push(outcome);
                    if round % 3 == 0 {
                        let outcome = format!("{from} {:?}", incoming.next().await);
                        outcomes.lock().unwrap().push(outcome);
                    }
                }
            });
        }
        cluster.sleep(3 * SECOND).await;
        cluster.cut(1, 2);
        cluster.network.clog(NodeId::new(3), NodeId::new(1));
        cluster.sleep(SECOND).await;
        cluster.crash(3);
        cluster.start(3);
        cluster.sleep(SECOND).await;
        cluster.network.heal();
        cluster.sleep(20 * SECOND).await;
        let outcomes = outcomes.lock().unwrap().clone();
        (cluster.network.trace_hash(), outcomes)
    })
}

#[test]
fn the_same_seed_gives_the_same_deliveries() {
    let (first, outcomes) = turmoil(11);
    assert!(outcomes.len() > 80, "{}", outcomes.len());
    assert!(outcomes.iter().any(|outcome| outcome.contains("DeadlineExceeded")));
    assert_eq!(turmoil(11), (first, outcomes));
    assert_ne!(turmoil(12).0, first);
}

/// Calls to a node that crashes and comes back all the time, over a link with every fault: how
/// many were refused for certain, and which of these were executed nevertheless.
fn false_certainties(seed: u64) -> (usize, Vec<Bytes>) {
    simulate(seed, |mut cluster| async move {
        for (from, to) in [(1, 2), (2, 1)] {
            cluster.link(from, to, |link| {
                link.jitter = Duration::from_millis(40);
                link.loss = 0.2;
                link.duplication = 0.5;
                link.reordering = 0.3;
            });
        }
        let refused = Arc::new(Mutex::new(Vec::new()));
        for number in 0..1_000 {
            let refused = Arc::clone(&refused);
            let node = &cluster.nodes[&1];
            let (transport, env) = (Arc::clone(&node.transport), Arc::clone(&node.env));
            node.env.spawn(async move {
                env.sleep(Duration::from_millis(3) * number).await;
                let request = Bytes::from(number.to_string());
                let answer = transport.call(NodeId::new(2), ECHO, request.clone(), SECOND).await;
                if answer.is_err_and(|error| error.certainly_not_executed()) {
                    refused.lock().unwrap().push(request);
                }
            });
        }
        for _ in 0..30 {
            cluster.sleep(Duration::from_millis(70)).await;
            cluster.crash(2);
            cluster.sleep(Duration::from_millis(30)).await;
            cluster.start(2);
        }
        cluster.sleep(3 * SECOND).await;
        let refused = refused.lock().unwrap().clone();
        let executed = |request: &Bytes| {
            let has = |echo: &Arc<Echo>| {
                echo.calls.lock().unwrap().iter().any(|(_, executed)| executed == request)
            };
            cluster.echoes.iter().any(has)
        };
        (refused.len(), refused.into_iter().filter(executed).collect())
    })
}

#[test]
fn what_is_certainly_not_executed_never_is() {
    for seed in 0..10 {
        let (refused, wrongly) = false_certainties(seed);
        assert!(refused > 50, "{refused}");
        assert_eq!(wrongly, Vec::<Bytes>::new(), "seed {seed}");
    }
}

#[test]
fn real_time_has_the_topologys_latency_too() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::new(&World::real(1), "metro-3");
        let node = &cluster.nodes[&1];
        node.call(2, "hello").await.unwrap();
        let start = cluster.micros();
        for _ in 0..20 {
            node.call(2, "hello").await.unwrap();
        }
        let each = (cluster.micros() - start) / 20;
        assert!((2_080..8_000).contains(&each), "{each} µs for a round trip of 2.08 ms");
    });
}

#[test]
fn a_network_without_users_is_gone() {
    World::run_virtual(1, CostModel::default(), |world| async move {
        let cluster = Cluster::new(&world, "us-eu-3");
        cluster.nodes[&1].call(2, "hello").await.unwrap();
        let weak = Arc::downgrade(&cluster.network.0);
        for id in 1..=3 {
            cluster.crash(id);
        }
        let env = world.node(77);
        drop(cluster);
        env.sleep(SECOND).await;
        assert!(weak.upgrade().is_none());
    });
}
