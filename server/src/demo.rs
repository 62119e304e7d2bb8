//! `meridian demo`: a cluster in this process, and a port for each of its nodes.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use meridian_truetime::{ClockSettings, Env, EnvironmentExt, World};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::banner::banner;
use crate::cluster::{Cluster, ClusterError, ClusterOptions};
use crate::config::{ConfigError, DemoConfig, NodeConfig};
use crate::console::{StopSignals, say};
use crate::pg::{FrontEnd, Limits, NodeSource};

/// How long sessions may take to end when the server stops.
const DRAIN: Duration = Duration::from_secs(2);

/// Why a demo can't run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The configuration doesn't hold together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port is taken.
    #[error("port {port} on 127.0.0.1 can't be used: {error}")]
    Port {
        /// The port.
        port: u16,
        /// What the system says.
        error: io::Error,
    },
    /// The cluster doesn't start.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Signals or the terminal don't work.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl DemoError {
    /// What can be done about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Port { error, .. } if error.kind() == io::ErrorKind::AddrInUse => {
                Some("another server runs there, perhaps this one; choose another with --port")
            }
            Self::Port { .. } => Some("choose another with --port"),
            Self::Config(_) | Self::Cluster(_) | Self::Io(_) => None,
        }
    }
}

/// Runs a demo until it is told to stop by SIGINT or SIGTERM; what queries compute runs on
/// `computing`.
///
/// # Errors
/// If it can't start.
pub async fn run(config: DemoConfig, computing: Handle) -> Result<(), DemoError> {
    let mut stop = StopSignals::new()?;
    let listeners = listen(&config.nodes).await?;
    let world = World::real_with_computing(config.seed, computing);
    // The front ends' environment lasts as long as the process; nodes have their own, which end
    // when they are stopped. No node has the number 0.
    let env: Env = world.node(0);
    let cluster = tokio::select! {
        cluster = Cluster::start(world, cluster_options(&config)) => cluster?,
        () = stop.next() => return Ok(()),
    };
    let (shutdown, stopping) = watch::channel(false);
    let mut front_ends = Vec::new();
    for (node, listener) in config.nodes.iter().zip(listeners) {
        let node = node_source(&cluster, node.number);
        let front_end = FrontEnd::new(Arc::clone(&env), node, Limits::default(), stopping.clone());
        env.spawn(front_end.clone().serve(listener));
        front_ends.push(front_end);
    }
    say(&banner(&config))?;
    stop.next().await;
    // Whoever asks twice isn't kept waiting.
    env.spawn(async move {
        stop.next().await;
        std::process::exit(130);
    });
    say("\nStopping.")?;
    shutdown.send_replace(true);
    let drained = futures::future::join_all(front_ends.iter().map(FrontEnd::drained));
    if env.timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("some sessions didn't end in time");
    }
    cluster.shutdown().await;
    Ok(())
}

/// Takes every port before anything else happens, so that a taken one leaves no traces.
async fn listen(nodes: &[NodeConfig]) -> Result<Vec<TcpListener>, DemoError> {
    let mut listeners = Vec::new();
    for node in nodes {
        let port = node.port;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        listeners.push(listener.map_err(|error| DemoError::Port { port, error })?);
    }
    Ok(listeners)
}

fn cluster_options(config: &DemoConfig) -> ClusterOptions {
    ClusterOptions {
        topology: config.topology.clone(),
        nodes: config.nodes.clone(),
        clock: ClockSettings::constant(config.epsilon),
        data: config.data.clone(),
        placement: config.placement.clone(),
        splits: config.splits,
        protocol: config.protocol,
        retention: config.retention,
    }
}

fn node_source(cluster: &Arc<Cluster>, number: u64) -> NodeSource {
    let cluster = Arc::clone(cluster);
    Arc::new(move || Some((cluster.engine(number)?, cluster.env(number)?)))
}
