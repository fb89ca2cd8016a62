//! Tests against a small server that has S3's conditions, and the faults that a test asks for.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_types::SdkConfig;
use aws_types::region::Region;
use shared::sync::lock;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What the server does with a request.
#[derive(Clone)]
enum Fault {
    /// Closes the connection without doing it.
    Drop,
    /// Does it, then closes the connection.
    DropAfter,
    /// Does it, then writes other bytes over it and closes the connection.
    Overwrite,
    /// Responds with this status and code, without doing it.
    Status(u16, &'static str),
    /// Responds with this status and code, after doing it.
    StatusAfter(u16, &'static str),
    /// Does it, and responds with only this many bytes.
    Cut(usize),
}

#[derive(Default)]
struct State {
    /// The bytes, and a number in their ETag.
    object: Option<(Vec<u8>, usize)>,
    writes: usize,
    /// What happens to the next requests. Later ones are answered without fault.
    faults: VecDeque<Fault>,
    /// The head of each request.
    requests: Vec<String>,
}

impl State {
    fn put(&mut self, bytes: &[u8]) {
        self.writes += 1;
        self.object = Some((bytes.to_vec(), self.writes));
    }

    /// Carries out a request, and returns the response.
    fn handle(&mut self, head: &str, body: &[u8]) -> Vec<u8> {
        let current = self.object.as_ref().map(|(_, number)| format!("\"{number}\""));
        let condition = |name: &str| header_of(head, name).map(str::to_owned);
        if head.starts_with("GET") {
            return match &self.object {
                Some((bytes, number)) => response(200, &format!("etag: \"{number}\"\r\n"), bytes),
                None => error(404, "NoSuchKey"),
            };
        }
        match (condition("if-match"), condition("if-none-match"), current) {
            (Some(_), None, None) => error(404, "NoSuchKey"),
            (Some(expected), None, Some(current)) if expected != current => error(412, "PreconditionFailed"),
            (None, Some(any), Some(_)) if any == "*" => error(412, "PreconditionFailed"),
            (None, None, _) => panic!("a write without a condition"),
            _ => {
                self.put(body);
                response(200, &format!("etag: \"{}\"\r\n", self.writes), b"")
            }
        }
    }
}

fn header_of<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name))).map(|(_, v)| v)
}

fn response(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn error(status: u16, code: &str) -> Vec<u8> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>ada@example.org</Message></Error>");
    response(status, "x-amz-bucket-region: eu-west-1\r\n", body.as_bytes())
}

struct FakeS3 {
    state: Arc<Mutex<State>>,
    store: S3Store,
}

impl FakeS3 {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state: Arc<Mutex<State>> = Arc::default();
        let served = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&served)));
            }
        });
        Self { state, store: store(port) }
    }

    fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.state).faults.extend(faults);
    }

    /// The number of requests since the last call.
    fn requests(&self) -> usize {
        std::mem::take(&mut lock(&self.state).requests).len()
    }

    fn stored(&self) -> Option<Vec<u8>> {
        lock(&self.state).object.clone().map(|(bytes, _)| bytes)
    }

    async fn write(&self, bytes: &[u8], expected: Option<&Version>) -> Result<Version, StoreError> {
        self.store.write(bytes.to_vec(), expected).await
    }
}

fn store(port: u16) -> S3Store {
    http_client::install_tls_provider();
    let http = http_client::build(http_client::tls_config(&[]).unwrap()).unwrap();
    let credentials =
        Credentials::new("AKIAIOSFODNN7EXAMPLE", "secret", Some("a-session-token".to_owned()), None, "test");
    let config = SdkConfig::builder()
        .region(Region::new("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .endpoint_url(format!("http://127.0.0.1:{port}"))
        .build();
    S3Store::new(S3Object::new(config, "idaa", "mirror/ledger"), http)
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let length = header_of(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let response = {
        let mut state = lock(&state);
        let fault = state.faults.pop_front();
        let response = match fault {
            None => state.handle(&head, &body),
            Some(Fault::Drop) => Vec::new(),
            Some(Fault::DropAfter) => {
                state.handle(&head, &body);
                Vec::new()
            }
            Some(Fault::Overwrite) => {
                state.handle(&head, &body);
                state.put(b"of another run");
                Vec::new()
            }
            Some(Fault::Status(status, code)) => error(status, code),
            Some(Fault::StatusAfter(status, code)) => {
                state.handle(&head, &body);
                error(status, code)
            }
            Some(Fault::Cut(length)) => {
                let mut response = state.handle(&head, &body);
                response.truncate(length);
                response
            }
        };
        state.requests.push(head);
        response
    };
    stream.write_all(&response).await?;
    stream.shutdown().await
}

#[tokio::test]
async fn object_is_written_only_over_the_expected_version() {
    let s3 = FakeS3::start().await;
    assert_eq!(s3.store.read().await, Ok(None));
    let first = s3.write(b"one", None).await.unwrap();
    assert_eq!(s3.store.read().await, Ok(Some((b"one".to_vec(), first.clone()))));
    assert_eq!(s3.write(b"other", None).await, Err(StoreError::Changed));

    let second = s3.write(b"two", Some(&first)).await.unwrap();
    assert_eq!(s3.write(b"other", Some(&first)).await, Err(StoreError::Changed));
    assert_eq!(s3.store.read().await, Ok(Some((b"two".to_vec(), second.clone()))));

    lock(&s3.state).object = None;
    assert_eq!(s3.write(b"other", Some(&second)).await, Err(StoreError::Changed));
    // A refusal that no lost response precedes is definite.
    assert_eq!(s3.requests(), 8);
}

#[tokio::test]
async fn requests_are_signed_with_the_session() {
    let s3 = FakeS3::start().await;
    s3.write(b"one", None).await.unwrap();
    let head = lock(&s3.state).requests.remove(0);
    assert!(head.starts_with("PUT /idaa/mirror/ledger HTTP/1.1\r\n"), "{head}");
    assert_eq!(header_of(&head, "x-amz-security-token"), Some("a-session-token"));
    let signed = header_of(&head, "authorization").unwrap();
    let headers = "SignedHeaders=host;if-none-match;x-amz-content-sha256;x-amz-date;x-amz-security-token";
    assert!(signed.contains("/us-east-1/s3/aws4_request") && signed.contains(headers), "{signed}");
}

#[tokio::test]
async fn lost_response_of_a_write_is_found_to_be_a_success() {
    for fault in [Fault::DropAfter, Fault::StatusAfter(500, "InternalError"), Fault::StatusAfter(503, "SlowDown")] {
        let s3 = FakeS3::start().await;
        let first = s3.write(b"one", None).await.unwrap();
        for (bytes, expected) in [(b"two", Some(&first)), (b"six", None)] {
            if expected.is_none() {
                lock(&s3.state).object = None;
            }
            s3.requests();
            s3.fail([fault.clone()]);
            let version = s3.write(bytes, expected).await.unwrap();
            assert_eq!(s3.store.read().await, Ok(Some((bytes.to_vec(), version))));
            // The second request was refused, because the first one was carried out. The third one found that.
            assert_eq!(s3.requests(), 4);
        }
    }
}

#[tokio::test]
async fn lost_request_is_sent_again() {
    let s3 = FakeS3::start().await;
    let mut version = None;
    for fault in [
        Fault::Drop,
        Fault::Status(500, "InternalError"),
        Fault::Status(503, "SlowDown"),
        Fault::Status(409, "ConditionalRequestConflict"),
        Fault::Status(400, "RequestTimeout"),
    ] {
        s3.fail([fault]);
        version = Some(s3.write(b"one", version.as_ref()).await.unwrap());
        assert_eq!(s3.requests(), 2);
    }
}

#[tokio::test]
async fn lost_write_that_another_run_replaced_is_a_change() {
    let s3 = FakeS3::start().await;
    let first = s3.write(b"one", None).await.unwrap();
    s3.fail([Fault::Overwrite]);
    assert_eq!(s3.write(b"two", Some(&first)).await, Err(StoreError::Changed));
    assert_eq!(s3.stored().as_deref(), Some(&b"of another run"[..]));
}

#[tokio::test]
async fn write_that_may_still_be_carried_out_is_unknown() {
    let s3 = FakeS3::start().await;
    let first = s3.write(b"one", None).await.unwrap();
    s3.requests();
    s3.fail(vec![Fault::Drop; 1 + MAX_RETRIES]);
    assert_eq!(s3.write(b"two", Some(&first)).await, Err(StoreError::Unknown));
    assert_eq!(s3.requests(), 1 + MAX_RETRIES + 1);

    // Nor if it can't be read back.
    s3.fail([Fault::Drop, Fault::Status(403, "ExpiredToken"), Fault::Status(403, "ExpiredToken")]);
    assert_eq!(s3.write(b"two", Some(&first)).await, Err(StoreError::Unknown));
}

#[tokio::test]
async fn response_without_a_version_is_read_back() {
    let s3 = FakeS3::start().await;
    s3.fail([Fault::StatusAfter(200, "")]);
    let version = s3.write(b"one", None).await.unwrap();
    assert_eq!(s3.store.read().await, Ok(Some((b"one".to_vec(), version))));
}

#[tokio::test]
async fn server_that_is_not_reached_has_written_nothing() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let failed = |operation: &str| {
        let cause = "connection refused. The next run tries again";
        StoreError::Failed(format!("{operation} the ledger failed: {cause}"))
    };
    assert_eq!(store(port).read().await, Err(failed("reading")));
    assert_eq!(store(port).write(b"one".to_vec(), None).await, Err(failed("writing")));
}

#[tokio::test]
async fn reads_are_retried() {
    let s3 = FakeS3::start().await;
    let version = s3.write(b"one", None).await.unwrap();
    s3.fail([Fault::Drop, Fault::Status(503, "SlowDown"), Fault::Cut(70)]);
    assert_eq!(s3.store.read().await, Ok(Some((b"one".to_vec(), version))));
}

#[tokio::test]
async fn object_that_is_too_large_is_not_read() {
    let s3 = FakeS3::start().await;
    lock(&s3.state).put(&vec![0; MAX_SIZE + 1]);
    assert_eq!(s3.store.read().await, Err(Operation::Read.too_large()));
}

#[tokio::test]
async fn errors_say_what_to_do_and_quote_no_message() {
    let s3 = FakeS3::start().await;
    for (status, code, expected) in [
        (
            403,
            "AccessDenied",
            "S3 responded with 403 (AccessDenied). Allow this function s3:GetObject and s3:PutObject",
        ),
        (403, "ExpiredToken", "S3 responded with 403 (ExpiredToken). Check the AWS credentials and the clock"),
        (404, "NoSuchBucket", "S3 responded with 404 (NoSuchBucket). Create the bucket"),
        (404, "ada@example.org", "S3 responded with 404. Check LEDGER and AWS_ENDPOINT_URL_S3"),
        (301, "PermanentRedirect", "S3 responded with 301 (PermanentRedirect). The bucket is in eu-west-1. Let LEDGER"),
        (400, "AuthorizationHeaderMalformed", "(AuthorizationHeaderMalformed). The bucket is in eu-west-1."),
        (405, "MethodNotAllowed", "S3 responded with 405 (MethodNotAllowed). Check LEDGER and AWS_ENDPOINT_URL_S3"),
    ] {
        s3.fail([Fault::Status(status, code), Fault::Status(status, code)]);
        let read = s3.store.read().await.unwrap_err().to_string();
        let write = s3.write(b"one", None).await.unwrap_err().to_string();
        assert!(read.starts_with("reading the ledger failed: ") && read.contains(expected), "{read}");
        assert!(write.starts_with("writing the ledger failed: ") && write.contains(expected), "{write}");
        assert!(!read.contains("ada") && !write.contains("ada"), "{read} {write}");
    }
    // None of them is retried.
    assert_eq!(s3.requests(), 14);
    assert_eq!(s3.stored(), None);
}
