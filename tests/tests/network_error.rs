//! The causes of failed connections, with real sockets and TLS servers: each says what to repair.

use std::convert::Infallible;
use std::net::TcpListener;

use anyhow::{Context, Result};
use http::Response;
use http_body_util::Full;
use hyper::body::Incoming;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use shared::http_client;
use tests::http_server::Server;
use tests::redis::CertificateAuthority;

#[tokio::test(flavor = "multi_thread")]
async fn failed_connection_has_a_cause_that_says_what_to_repair() -> Result<()> {
    http_client::install_tls_provider();
    let (trusted, other) = (CertificateAuthority::new()?, CertificateAuthority::new()?);
    let authority = CertificateDer::from_pem_file(trusted.file("ca.pem"))?;
    let client = http_client::build(http_client::tls_config(&[authority])?)?;
    let handler =
        async |_: http::Request<Incoming>| Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::default()));
    let handler = move |request| handler(request);
    let start = async |acceptor| anyhow::Ok(Server::start_tls(acceptor, handler).await?);
    // A port that was free a moment ago.
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    // Servers run until they are dropped.
    let servers = [
        start(other.acceptor()?).await?,
        start(trusted.acceptor_for("lists.example.org", false)?).await?,
        start(trusted.acceptor_for("127.0.0.1", true)?).await?,
        start(trusted.acceptor_of_authority()?).await?,
        Server::start(handler).await?,
    ];
    let [unknown, other_name, expired, of_authority, plain] =
        servers.each_ref().map(|server| server.url().replace("http://", "https://"));
    for (url, expected) in [
        (unknown, "TLS failed: the certificate's authority isn't trusted"),
        (other_name, "TLS failed: the certificate is for another name"),
        (expired, "TLS failed: the certificate has expired"),
        (of_authority, "TLS failed: the certificate is one of an authority, not of a server"),
        (plain, "TLS failed: the server doesn't respond in TLS"),
        (format!("https://127.0.0.1:{closed}"), "connection refused"),
        ("https://no-such-host.invalid".to_owned(), "the host name can't be resolved"),
    ] {
        let error = client.get(&url).send().await.err().context("the request succeeded")?;
        assert_eq!(http_client::cause(&error), expected, "{url}");
    }
    Ok(())
}
