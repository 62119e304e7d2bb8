//! `meridian start`: one node of a real cluster in this process, over gRPC.
//!
//! ```text
//!   configuration ─▶ listeners ─▶ folder and identity ─▶ meet the others ─▶ node ─▶ clients
//! ```
//!
//! Nothing is written before the configuration is known to be sound and the addresses are free.
//! Then the node introduces itself to whomever of the list it reaches
//! ([`grpc::Passport`](meridian_replication::net::grpc::Passport)), and ends if one of them says
//! that it is not who it claims to be, or later when one finds out.
//!
//! **How a cluster begins.** The replicas of the system tablet must be the same on every node, and
//! stay the same when the list of nodes grows. So a new node asks the others how the cluster began.
//! If nobody knows, it waits until it has met all that would be the first voters, and then it has
//! begun. Waiting for all of them, not for a majority, means that nodes which lost their disks can't
//! begin a second cluster while one that remembers the first is away.

pub mod config;
mod info;
mod meeting;
mod view;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use meridian_replication::Timing;
use meridian_replication::net::grpc::Passport;
use meridian_replication::net::{GrpcTransport, Registry};
use meridian_sql::{Engine, SqlError};
use meridian_storage::{FolderDisk, Identity, NodeId, Storage, StorageError, StorageOptions};
use meridian_truetime::{Env, EnvironmentExt, SystemClock, TrueTime, World};
use meridian_txn::{Node, NodeOptions, TxnError};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::config::fresh_seed;
use crate::console::{StopSignals, say};
use crate::pg::{FrontEnd, Limits, NodeSource};

use config::{ConfigError, StartConfig};
use info::NodeService;
use meeting::Refused;
use view::View;

/// How long sessions may take to end when the node stops.
const DRAIN: Duration = Duration::from_secs(2);

/// How long the system tablet may take to serve before the terminal is told that it doesn't.
const QUIET: Duration = Duration::from_secs(4);

/// Why a node can't run, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration doesn't hold together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address is taken or isn't this machine's.
    #[error("can't listen at {address} for {whom}: {error}")]
    Listen {
        /// Host and port.
        address: String,
        /// The other nodes or clients.
        whom: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// The folder can't be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It must not run as the node that it claims to be.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The node doesn't come up.
    #[error("node {} does not start: {error}", node.get())]
    Start {
        /// The node.
        node: NodeId,
        /// Why.
        error: TxnError,
    },
    /// The SQL engine can't be set up.
    #[error("node {} can't serve SQL: {error}", node.get())]
    Engine {
        /// The node.
        node: NodeId,
        /// Why.
        error: SqlError,
    },
    /// Signals or the terminal don't work.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StartError {
    /// What can be done about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Listen { error, .. } if error.kind() == io::ErrorKind::AddrInUse => {
                Some("Another process uses it, perhaps another node; correct one of them.".into())
            }
            Self::Listen { .. } => {
                Some("It must be an address of this machine, or 0.0.0.0 with the port.".into())
            }
            Self::Storage(error) => error.hint().map(str::to_owned),
            Self::Refused(refused) => Some(refused.hint()),
            Self::Config(_) | Self::Start { .. } | Self::Engine { .. } | Self::Io(_) => None,
        }
    }
}

/// Runs a node until it is told to stop by SIGINT or SIGTERM, or must stop because another process
/// is the node that this one claims to be.
///
/// # Errors
/// If it can't start, or must stop.
pub async fn run(config: StartConfig, computing: Handle) -> Result<(), StartError> {
    let mut stop = StopSignals::new()?;
    let peers = listen(&config.listen, "the other nodes").await?;
    let clients = listen(&config.sql, "clients").await?;
    let world = World::real_with_computing(fresh_seed(), computing);
    // The node's environment ends with the node, the process's with the process.
    let (process, env): (Env, _) = (world.node(0), world.node(config.id.get()));
    let as_env: Env = Arc::clone(&env) as Env;
    let disk = Arc::new(FolderDisk::open(&config.data_dir)?);
    let identity = Arc::new(Identity::open(&as_env, &*disk, &config.cluster, config.id)?);
    let storage = Storage::open(Arc::clone(&as_env), disk, StorageOptions::default())?;
    let registry = Registry::new();
    let passport = Arc::new(Passport::new(identity, config.first_voters()));
    let transport = GrpcTransport::with_passport(
        Arc::clone(&passport),
        config.peers(),
        meeting::latencies(&config),
        Arc::clone(&as_env),
        registry.clone(),
    );
    let (shutdown, stopping) = watch::channel(false);
    let served = serve_peers(&transport, peers, &process, stopping.clone());
    let config = Arc::new(config);
    let running = async {
        let voters = meeting::gather(&config, &passport, &transport, &as_env).await?;
        start(&config, &voters, &as_env, storage, &transport, registry).await
    };
    let (node, engine) = tokio::select! {
        running = running => running?,
        refused = meeting::exposed(&passport) => return Err(refused.into()),
        () = stop.next() => return Ok(()),
    };
    let source: NodeSource = {
        let env = Arc::clone(&as_env);
        Arc::new(move || Some((Arc::clone(&engine), Arc::clone(&env))))
    };
    let front_end = FrontEnd::new(Arc::clone(&process), source, Limits::default(), stopping);
    process.spawn(front_end.clone().serve(clients));
    say(&banner(&config))?;
    process.spawn(announce(Arc::clone(&node), Arc::clone(&process)));
    let refused = tokio::select! {
        refused = meeting::exposed(&passport) => Some(refused),
        () = stop.next() => None,
    };
    if let Some(refused) = refused {
        // It must not vote any more: no farewell.
        env.halt();
        return Err(refused.into());
    }
    // Whoever asks twice isn't kept waiting.
    process.spawn(async move {
        stop.next().await;
        std::process::exit(130);
    });
    say("\nStopping.")?;
    shutdown.send_replace(true);
    if process.timeout(DRAIN, front_end.drained()).await.is_err() {
        tracing::warn!("some sessions didn't end in time");
    }
    node.shutdown().await;
    let _ = process.timeout(DRAIN, served).await;
    env.halt();
    Ok(())
}

async fn listen(address: &str, whom: &'static str) -> Result<TcpListener, StartError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| StartError::Listen { address: address.to_owned(), whom, error })
}

/// Serves the other nodes until the node stops; completes when it does no more.
fn serve_peers(
    transport: &GrpcTransport,
    listener: TcpListener,
    process: &Env,
    mut stopping: watch::Receiver<bool>,
) -> impl Future<Output = ()> + use<> {
    let transport = transport.clone();
    let (done, served) = tokio::sync::oneshot::channel::<()>();
    process.spawn(async move {
        let stop = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        if let Err(error) = transport.serve(listener, stop).await {
            tracing::error!(%error, "the other nodes can't be served any more");
        }
        drop(done);
    });
    async move {
        let _ = served.await;
    }
}

async fn start(
    config: &Arc<StartConfig>,
    voters: &[NodeId],
    env: &Env,
    storage: Storage,
    transport: &GrpcTransport,
    registry: Registry,
) -> Result<(Arc<Node>, Arc<Engine>), StartError> {
    let id = config.id;
    let failed = |error| StartError::Start { node: id, error };
    let clock: Arc<dyn TrueTime> = Arc::new(SystemClock::new(config.epsilon));
    let started = clock.now().earliest;
    let options = NodeOptions {
        id,
        members: config.members(voters),
        env: Arc::clone(env),
        clock: Arc::clone(&clock),
        storage,
        transport: Arc::new(transport.clone()),
        registry: registry.clone(),
        timing: Timing::for_round_trip(config.max_round_trip),
        voters: voters.len(),
        placement: config.placement.clone(),
        splits: config.splits,
        retention: config.retention,
    };
    let node = Node::start(options).await.map_err(failed)?;
    let view = View::new(Arc::clone(config), &node, transport.clone());
    let service = NodeService::new(Arc::clone(config), clock, started, transport.clone());
    registry.register(info::SERVICE, Arc::new(service));
    let engine = Engine::new(Arc::clone(&node), Arc::new(view), config.protocol)
        .map_err(|error| StartError::Engine { node: id, error })?;
    node.claim_leadership().await;
    Ok((node, engine))
}

/// Says when the cluster serves, and that it doesn't if that takes long.
async fn announce(node: Arc<Node>, env: Env) {
    if let Ok(Ok(())) = env.timeout(QUIET, node.ready()).await {
        return;
    }
    let _ = say("Waiting for a majority of the system tablet's replicas.");
    while node.ready().await.is_err() {
        env.sleep(Duration::from_secs(1)).await;
    }
    let _ = say("The cluster serves.");
}

fn banner(config: &StartConfig) -> String {
    let region = config.own().map_or("", |own| own.region.as_str());
    let (host, port) = config.sql.rsplit_once(':').unwrap_or((&config.sql, "5433"));
    let host = if host == "0.0.0.0" || host == "[::]" { "127.0.0.1" } else { host };
    format!(
        "Meridian {} is running: node {} of cluster {}, in {region}.\n\n\
         Connect with       psql -h {} -p {port}\n\
         Other nodes at     {}\n\
         Clock uncertainty  {} (of the system's clock, as declared)\n\
         Added latency      {}\n\
         Data               {}\n\n\
         Press Ctrl-C to stop.",
        env!("CARGO_PKG_VERSION"),
        config.id.get(),
        config.cluster,
        host.trim_matches(['[', ']']),
        config.listen,
        humantime::format_duration(config.epsilon),
        config.topology.as_ref().map_or("none", |topology| topology.name()),
        config.data_dir.display(),
    )
}
