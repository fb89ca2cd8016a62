//! The services for both functions when they run in containers, for
//! `scripts/sam`: a simulated Novi with the member of the sample events, a real
//! Mailman with their list, and moto with the parameters of both functions
//! and a bucket for the ledger.
//!
//! `container_services HOST` takes the address at which containers reach this
//! machine. All servers listen only on loopback, so it forwards their ports from
//! that address. It prints one line of JSON with the URLs and credentials of the
//! services, and runs until standard input is closed or a signal ends it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "scripts/sam reads what this program prints")]

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value, json};
use tests::aws::Moto;
use tests::directory::{Directory, record};
use tests::mailman::{Mailman, USER};
use tests::novi::Novi;
use tests::privacy::Private;
use tests::process::run_until_closed;
use tests::workspace;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use url::Url;
use uuid::Uuid;

/// The member in the requests of `events/`.
const MEMBER: Uuid = uuid::uuid!("39120341-3c8e-47b0-9a40-45b5659b2044");
/// The group that `config.example.json` maps.
const GROUP: Uuid = uuid::uuid!("6c5ed1fc-2b0b-4f2f-8d0b-7d2b7d0a4a11");
/// The parameter prefix, as in the template.
const PREFIX: &str = "/idaa";

#[tokio::main]
async fn main() -> ExitCode {
    let host = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [host] => host.parse().ok(),
        _ => None,
    };
    let Some(host) = host else {
        eprintln!(
            "usage: container_services HOST   (an address of this machine that containers reach, such as 172.17.0.1)"
        );
        return ExitCode::from(2);
    };
    run_until_closed("container_services", serve(host)).await
}

async fn serve(host: IpAddr) -> anyhow::Result<()> {
    let mut directory = Directory::default();
    // Novi turns the plus into a space.
    directory.people.insert(MEMBER, record(MEMBER, "Marguerite", "Delacroix", "ada lists@example.org"));
    directory.groups.insert(GROUP, vec![MEMBER]);
    let novi = Novi::start(directory, Private::default()).await?;
    let mailman = Mailman::start().await?;
    let list = mailman.create_list("members").await?;
    let moto = Moto::start()?;

    let path = workspace().join("config.example.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    config["novi_api_root_url"] = json!(forward(host, &novi.root()).await?);
    config["novi_idaa_api_key"] = json!(novi.state().key);
    config["mailman_base_url"] = json!(forward(host, &mailman.base_url()).await?);
    config["mailman_username"] = json!(USER);
    config["mailman_password"] = json!(mailman.password());
    moto.put(PREFIX, &config).await?;
    println!(
        "{}",
        json!({
            "aws": forward(host, &moto.url()).await?,
            "ledger": format!("s3://{}/ledger", moto.create_bucket().await?),
            "api_key": config["api_keys"][0]["key"],
            "member": MEMBER,
            "mailman": mailman.base_url(),
            "mailman_username": USER,
            "mailman_password": mailman.password(),
            "list": list,
            // No log may contain these.
            "private": [
                MEMBER, "Marguerite", "Delacroix", "ada+lists", "ada lists", novi.state().key, mailman.password(),
                config["api_keys"][0]["key"], config["jwt_secret"], config["ledger_key"],
            ],
        })
    );
    std::future::pending().await
}

/// Forwards the port of `url`, which is on loopback, from the same port of `host`.
/// Returns the URL with that host.
async fn forward(host: IpAddr, url: &str) -> anyhow::Result<String> {
    let port = Url::parse(url)?.port().context("expected a port in the server's URL")?;
    let listener = TcpListener::bind((host, port))
        .await
        .with_context(|| format!("listening on {host}:{port} failed. Is {host} an address of this machine?"))?;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    Ok(url.replace("127.0.0.1", &host.to_string()))
}
