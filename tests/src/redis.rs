//! Real Redis servers: plain, with TLS and a password, or as a cluster of three, with or without replicas.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use crate::process::{Server, free_port};

/// A certificate authority for one test, with a certificate for loopback.
pub struct CertificateAuthority {
    dir: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl CertificateAuthority {
    /// Creates a certificate authority.
    ///
    /// # Errors
    /// Fails if the files can't be written.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        // If issuer and subject have the same name, OpenSSL considers a certificate self-signed.
        ca.distinguished_name = DistinguishedName::new();
        ca.distinguished_name.push(DnType::CommonName, "test authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = certificate(&["127.0.0.1", "localhost"])?.signed_by(&key, &ca)?;
        std::fs::write(dir.path().join("ca.pem"), ca.pem())?;
        std::fs::write(dir.path().join("cert.pem"), certificate.pem())?;
        std::fs::write(dir.path().join("key.pem"), key.serialize_pem())?;
        Ok(Self { dir, ca })
    }

    /// Returns a TLS acceptor with a certificate for this name, expired if `has_expired`.
    ///
    /// # Errors
    /// Fails if the certificate can't be created.
    pub fn acceptor_for(&self, name: &str, has_expired: bool) -> anyhow::Result<TlsAcceptor> {
        let key = KeyPair::generate()?;
        let mut certificate = certificate(&[name])?;
        if has_expired {
            certificate.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let certificate = certificate.signed_by(&key, &self.ca)?;
        tls_acceptor(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// Returns a TLS acceptor with the authority's own certificate, as if it were a server's.
    ///
    /// # Errors
    /// Fails if the key isn't valid.
    pub fn acceptor_of_authority(&self) -> anyhow::Result<TlsAcceptor> {
        tls_acceptor(vec![self.ca.der().clone()], PrivateKeyDer::Pkcs8(self.ca.key().serialize_der().into()))
    }

    /// Returns a TLS acceptor with the certificate for loopback.
    ///
    /// # Errors
    /// Fails if the files can't be read.
    pub fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let certificates = CertificateDer::pem_file_iter(self.file("cert.pem"))?.collect::<Result<Vec<_>, _>>()?;
        tls_acceptor(certificates, PrivateKeyDer::from_pem_file(self.file("key.pem"))?)
    }

    /// Returns the path of `ca.pem`, `cert.pem` or `key.pem`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn certificate(names: &[&str]) -> anyhow::Result<CertificateParams> {
    let mut certificate = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    certificate.distinguished_name = DistinguishedName::new();
    certificate.distinguished_name.push(DnType::CommonName, "localhost");
    Ok(certificate)
}

fn tls_acceptor(
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> anyhow::Result<TlsAcceptor> {
    shared::http_client::install_tls_provider();
    let tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key)?;
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

/// The kinds of Redis deployments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One server without TLS and password.
    Plain,
    /// One server with a password and TLS, with a certificate from the test's own authority.
    Tls,
    /// A cluster: the slots are distributed over three servers.
    Cluster,
}

/// A running Redis.
pub struct Redis {
    kind: Kind,
    nodes: Vec<Node>,
    authority: Option<CertificateAuthority>,
    password: Option<String>,
}

struct Node {
    server: Server,
    port: u16,
    dir: TempDir,
}

impl Redis {
    /// Starts a Redis of this kind.
    ///
    /// # Errors
    /// Fails if Redis doesn't start.
    pub fn start(kind: Kind) -> anyhow::Result<Self> {
        Self::start_with(kind, &[])
    }

    /// Starts a Redis of this kind, with `options` for each server.
    ///
    /// # Errors
    /// Fails if Redis doesn't start.
    pub fn start_with(kind: Kind, options: &[&str]) -> anyhow::Result<Self> {
        let count = if kind == Kind::Cluster { 3 } else { 1 };
        let redis = Self::start_nodes(kind, count, options)?;
        if kind == Kind::Cluster {
            redis.form_cluster(0)?;
        }
        Ok(redis)
    }

    /// Starts a cluster of three masters, each with a replica that takes over if the master dies.
    ///
    /// # Errors
    /// Fails if Redis doesn't start.
    pub fn start_with_replicas() -> anyhow::Result<Self> {
        let redis = Self::start_nodes(Kind::Cluster, 6, &["--repl-diskless-sync-delay", "0"])?;
        redis.form_cluster(1)?;
        // The first three servers are the masters.
        let replicas = redis.nodes.iter().skip(3);
        wait_for("master_link_status:up", replicas, |node| redis.command_on(node, &["INFO", "replication"]))?;
        Ok(redis)
    }

    fn start_nodes(kind: Kind, count: usize, options: &[&str]) -> anyhow::Result<Self> {
        let authority = (kind == Kind::Tls).then(CertificateAuthority::new).transpose()?;
        let password = (kind == Kind::Tls).then(|| format!("r{:032x}", fastrand::u128(..)));
        let mut redis = Self { kind, nodes: Vec::new(), authority, password };
        for _ in 0..count {
            let (dir, port) = (tempfile::tempdir()?, free_port()?);
            let server = redis.start_node(dir.path(), port, options)?;
            redis.nodes.push(Node { server, port, dir });
        }
        Ok(redis)
    }

    /// Starts a cluster of one server that announces `announced` to clients as
    /// its port, which is the port of a proxy in front of it.
    ///
    /// # Errors
    /// Fails if Redis doesn't start.
    pub fn start_announced(announced: u16) -> anyhow::Result<Self> {
        let mut redis = Self { kind: Kind::Cluster, nodes: Vec::new(), authority: None, password: None };
        let (dir, port) = (tempfile::tempdir()?, free_port()?);
        let announced = announced.to_string();
        let options = ["--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", &announced];
        let server = redis.start_node(dir.path(), port, &options)?;
        redis.nodes.push(Node { server, port, dir });
        redis.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"])?;
        redis.wait_for("cluster_state:ok", &["CLUSTER", "INFO"])?;
        Ok(redis)
    }

    fn start_node(&self, dir: &Path, port: u16, extra_options: &[&str]) -> anyhow::Result<Server> {
        let path = |file: &Path| file.display().to_string();
        let mut options: Vec<String> = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]
            .map(str::to_owned)
            .into_iter()
            .chain([path(dir)])
            .chain(extra_options.iter().map(|option| (*option).to_owned()))
            .collect();
        let mut add = |name: &str, value: String| options.extend([name.to_owned(), value]);
        match &self.authority {
            None => add("--port", port.to_string()),
            Some(authority) => {
                add("--port", "0".to_owned());
                add("--tls-port", port.to_string());
                add("--tls-cert-file", path(&authority.file("cert.pem")));
                add("--tls-key-file", path(&authority.file("key.pem")));
                add("--tls-ca-cert-file", path(&authority.file("ca.pem")));
                add("--tls-auth-clients", "no".to_owned());
            }
        }
        if let Some(password) = &self.password {
            add("--requirepass", password.clone());
        }
        if self.kind == Kind::Cluster {
            add("--cluster-enabled", "yes".to_owned());
            add("--cluster-node-timeout", "2000".to_owned());
            add("--cluster-port", free_port()?.to_string());
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let mut server = Server::start(Path::new("redis-server"), &options, &[], dir.join("log"))?;
        server.wait_for_port(port, Duration::from_secs(20)).context("Redis failed to start")?;
        Ok(server)
    }

    fn form_cluster(&self, replicas: usize) -> anyhow::Result<()> {
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        let replicas = replicas.to_string();
        let options = ["--cluster-replicas", &replicas, "--cluster-yes"];
        let output = Command::new("redis-cli").args(["--cluster", "create"]).args(&nodes).args(options).output()?;
        ensure!(output.status.success(), "creating the cluster failed: {}", String::from_utf8_lossy(&output.stdout));
        self.wait_for("cluster_state:ok", &["CLUSTER", "INFO"])
    }

    fn wait_for(&self, text: &str, command: &[&str]) -> anyhow::Result<()> {
        wait_for(text, self.nodes.iter(), |node| self.command_on(node, command))
    }

    /// Returns the environment variables that make a function use this Redis.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        let scheme = if self.authority.is_some() { "rediss" } else { "redis" };
        let mut variables = vec![("CACHE_URL".to_owned(), format!("{scheme}://127.0.0.1:{}", self.port()))];
        if self.kind == Kind::Cluster {
            variables.push(("CACHE_CLUSTER".to_owned(), "true".to_owned()));
        }
        if let Some(authority) = &self.authority {
            variables.push(("EXTRA_CA_CERTS".to_owned(), authority.file("ca.pem").display().to_string()));
        }
        variables
    }

    /// Returns the authority of its certificate, if it uses TLS.
    #[must_use]
    pub fn authority(&self) -> Option<&CertificateAuthority> {
        self.authority.as_ref()
    }

    /// Returns the password, if it has one.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Returns the port of the first server.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.nodes[0].port
    }

    /// Returns the ports of all servers.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.port).collect()
    }

    /// Runs a command, in a cluster on the server that owns its key, and returns redis-cli's output.
    ///
    /// # Errors
    /// Fails if the command fails.
    pub fn command(&self, command: &[&str]) -> anyhow::Result<String> {
        self.command_on(&self.nodes[0], command)
    }

    /// Runs a command on one of the servers.
    ///
    /// # Errors
    /// Fails if the command fails.
    pub fn command_on_node(&self, node: usize, command: &[&str]) -> anyhow::Result<String> {
        self.command_on(&self.nodes[node], command)
    }

    /// Makes this server a replica of another one, and waits until it has its data.
    ///
    /// # Errors
    /// Fails if it doesn't become a replica.
    pub fn follow(&self, primary: &Self) -> anyhow::Result<()> {
        primary.command(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"])?;
        self.command(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()])?;
        self.wait_for("master_link_status:up", &["INFO", "replication"])
    }

    /// Runs a command on every server.
    ///
    /// # Errors
    /// Fails if the command fails on a server.
    pub fn command_on_all(&self, command: &[&str]) -> anyhow::Result<()> {
        self.nodes.iter().try_for_each(|node| self.command_on(node, command).map(|_| ()))
    }

    fn command_on(&self, node: &Node, command: &[&str]) -> anyhow::Result<String> {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &node.port.to_string()]);
        if self.kind == Kind::Cluster {
            cli.arg("-c");
        }
        if let Some(authority) = &self.authority {
            cli.arg("--tls").arg("--cacert").arg(authority.file("ca.pem"));
        }
        if let Some(password) = &self.password {
            cli.env("REDISCLI_AUTH", password);
        }
        let output = cli.args(command).output().context("redis-cli is missing")?;
        if !output.status.success() {
            bail!("redis-cli failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        let reply = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // redis-cli exits with 0 even if the reply is an error.
        ensure!(!reply.starts_with("ERR "), "{reply}");
        Ok(reply)
    }

    /// Changes the password, here and on the server.
    ///
    /// # Errors
    /// Fails if the server rejects it.
    pub fn set_password(&mut self, password: &str) -> anyhow::Result<()> {
        self.command(&["CONFIG", "SET", "requirepass", password])?;
        self.password = Some(password.to_owned());
        Ok(())
    }

    /// Closes the connections of all clients.
    ///
    /// # Errors
    /// Fails if the command fails on a server.
    pub fn drop_clients(&self) -> anyhow::Result<()> {
        self.command_on_all(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
    }

    /// Closes the connections of all clients to one of the servers.
    ///
    /// # Errors
    /// Fails if the command fails.
    pub fn drop_clients_of(&self, node: usize) -> anyhow::Result<()> {
        self.command_on(&self.nodes[node], &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).map(|_| ())
    }

    /// Kills the servers.
    pub fn kill(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.server.kill());
    }

    /// Kills one of the servers.
    pub fn kill_node(&mut self, node: usize) {
        self.nodes[node].server.kill();
    }

    /// Freezes one of the servers: it accepts connections, but doesn't respond.
    pub fn freeze_node(&self, node: usize) {
        self.nodes[node].server.signal(Signal::SIGSTOP);
    }

    /// Restarts one of the killed servers of a cluster on the same port, without knowledge of the cluster.
    ///
    /// # Errors
    /// Fails if the server doesn't start.
    pub fn restart_empty_node(&mut self, node: usize) -> anyhow::Result<()> {
        let (dir, port) = (self.nodes[node].dir.path().to_owned(), self.nodes[node].port);
        std::fs::remove_file(dir.join("nodes.conf"))?;
        self.nodes[node].server = self.start_node(&dir, port, &[])?;
        Ok(())
    }

    /// Restarts the servers on the same ports, without data.
    ///
    /// # Errors
    /// Fails if a server doesn't start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        for index in 0..self.nodes.len() {
            let (dir, port) = (self.nodes[index].dir.path().to_owned(), self.nodes[index].port);
            let server = self.start_node(&dir, port, &[])?;
            self.nodes[index].server = server;
        }
        if self.kind == Kind::Cluster {
            self.wait_for("cluster_state:ok", &["CLUSTER", "INFO"])?;
        }
        Ok(())
    }

    /// Freezes the servers: they accept connections, but don't respond.
    pub fn freeze(&self) {
        self.nodes.iter().for_each(|node| node.server.signal(Signal::SIGSTOP));
    }

    /// Resumes the frozen servers.
    pub fn thaw(&self) {
        self.nodes.iter().for_each(|node| node.server.signal(Signal::SIGCONT));
    }
}

/// Waits until the reply of each node contains `text`.
fn wait_for<'n>(
    text: &str,
    nodes: impl Iterator<Item = &'n Node>,
    reply: impl Fn(&Node) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    for node in nodes {
        while !reply(node)?.contains(text) {
            ensure!(started.elapsed() < Duration::from_secs(20), "expected {text} from Redis");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}
