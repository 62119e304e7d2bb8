//! A cluster of processes, one per node, over gRPC on loopback.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::sync::OwnedSemaphorePermit;
use tokio_postgres::Client;

use super::server::{binary, turn};
use super::{connect, eventually, free_ports};

/// What a node prints when clients may come.
const READY: &str = "Press Ctrl-C to stop.";

/// A cluster of processes. They are killed when it is dropped.
pub struct Processes {
    folder: TempDir,
    /// The first port; nodes and clients have the ones behind it.
    first: u16,
    /// How many nodes are in the list of nodes.
    listed: u16,
    children: BTreeMap<u16, Child>,
    _turn: OwnedSemaphorePermit,
}

/// The most nodes that ports are kept for.
const MOST: u16 = 6;

impl Processes {
    /// Starts so many nodes, and waits until clients may come to all of them.
    pub async fn start(count: u16) -> Self {
        let mut cluster = Self {
            folder: TempDir::new().expect("a temporary folder"),
            _turn: turn().await,
            first: free_ports(2 * MOST + 4),
            listed: count,
            children: BTreeMap::new(),
        };
        for node in 1..=count {
            cluster.spawn(node);
        }
        for node in 1..=count {
            cluster.up(node).await;
        }
        cluster
    }

    /// Where a node serves clients.
    pub fn sql_port(&self, node: u16) -> u16 {
        self.first + MOST + node
    }

    /// A pair of ports that no node of the list has.
    fn spare(&self) -> (u16, u16) {
        (self.first + 2 * MOST + 2, self.first + 2 * MOST + 3)
    }

    /// A node's folder.
    pub fn data(&self, node: u16) -> PathBuf {
        self.folder.path().join(format!("data{node}"))
    }

    /// From now on the list has so many nodes; for those that are started after this.
    pub fn list(&mut self, count: u16) {
        self.listed = count;
    }

    /// A node's configuration.
    pub fn config(&self, node: u16) -> String {
        let mut text = format!(
            "cluster = \"test\"\nnode = {node}\ndata_dir = \"data{node}\"\n\n\
             [clock]\nepsilon = \"1ms\"\n"
        );
        for id in 1..=self.listed {
            let (address, sql) = (self.first + id, self.sql_port(id));
            text.push_str(&format!(
                "\n[[nodes]]\nid = {id}\nregion = \"r{id}\"\naddress = \"127.0.0.1:{address}\"\n\
                 sql = \"127.0.0.1:{sql}\"\n"
            ));
        }
        text
    }

    /// A node's configuration as that of a process beside it: with other ports and another folder.
    pub fn config_beside(&self, node: u16, data: &str) -> String {
        let (address, sql) = self.spare();
        self.config(node)
            .replace(&format!(":{}\"", self.first + node), &format!(":{address}\""))
            .replace(&format!(":{}\"", self.sql_port(node)), &format!(":{sql}\""))
            .replace(&format!("\"data{node}\""), &format!("\"{data}\""))
    }

    /// Writes a configuration into the cluster's folder.
    pub fn write(&self, name: &str, config: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, config).expect("written");
        path
    }

    /// Starts a node and doesn't wait for it.
    pub fn spawn(&mut self, node: u16) {
        let config = self.write(&format!("node{node}.toml"), &self.config(node));
        let file = |name: &str| {
            File::create(self.folder.path().join(format!("{name}{node}"))).expect("a file")
        };
        let mut command = Command::new(binary());
        command.arg("start").arg("--config").arg(config);
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        self.children.insert(node, command.spawn().expect("the binary starts"));
    }

    /// Waits until clients may come to a node.
    pub async fn up(&mut self, node: u16) {
        let stdout = self.folder.path().join(format!("stdout{node}"));
        let child = self.children.get_mut(&node).expect("it was started");
        let stderr = self.folder.path().join(format!("stderr{node}"));
        eventually("the node comes up", async || {
            if let Some(status) = child.try_wait().expect("a child") {
                panic!("node {node} ended with {status}: {}", read(&stderr));
            }
            if read(&stdout).contains(READY) { Ok(()) } else { Err("not yet") }
        })
        .await;
    }

    /// Kills a node as `kill -9` does.
    pub fn kill(&mut self, node: u16) {
        let mut child = self.children.remove(&node).expect("it runs");
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// Stops a node with SIGTERM; its exit code.
    pub async fn stop(&mut self, node: u16) -> Option<i32> {
        let pid = self.children[&node].id().to_string();
        Command::new("kill").args(["-s", "TERM", &pid]).status().expect("kill runs");
        self.ended(node).await
    }

    /// Waits until a node has ended; its exit code.
    pub async fn ended(&mut self, node: u16) -> Option<i32> {
        let child = self.children.get_mut(&node).expect("it was started");
        let status =
            eventually("the node ends", async || child.try_wait().expect("a child").ok_or("no"))
                .await;
        self.children.remove(&node);
        status.code()
    }

    /// A session at a node.
    pub async fn connect(&self, node: u16) -> Client {
        eventually("a session", async || connect(self.sql_port(node)).await).await
    }

    /// What a node has complained about.
    pub fn stderr(&self, node: u16) -> String {
        read(&self.folder.path().join(format!("stderr{node}")))
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

impl Drop for Processes {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in 1..=self.listed {
                let stdout = read(&self.folder.path().join(format!("stdout{node}")));
                eprintln!("--- node {node}\n{stdout}\n{}", self.stderr(node));
            }
        }
        for child in self.children.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
