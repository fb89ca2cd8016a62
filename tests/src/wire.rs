//! A connection that a simulated server answers on, with what HTTP libraries don't let a server send: folded header
//! lines, raw bytes, and a second response to one request.
//!
//! The handler of a request marks its response, and the connection carries the mark out when the response is written.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// In the value of a header: written as a line break and a space, which folds the line.
pub const FOLD: [u8; 3] = [0xff, 0xfe, 0xfd];

/// The header that marks a response. It is written like any other, because clients ignore it.
const MARK: &str = "x-second-response-after-ms";

/// Marks a response to be sent a second time after a delay, although no second request was made.
pub fn send_twice(headers: &mut HeaderMap, delay: Duration) {
    headers.insert(MARK, HeaderValue::from(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)));
}

/// The server's side of a connection.
pub struct Wire(Arc<TcpStream>);

impl Wire {
    /// Wraps a connection.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut written = bytes.to_vec();
        while let Some(at) = written.windows(FOLD.len()).position(|window| window == FOLD) {
            written[at..at + FOLD.len()].copy_from_slice(b"\r\n ");
        }
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(&written) {
                Ok(length) => {
                    if let Some(delay) = delay_of_second(&written) {
                        self.repeat(written, delay);
                    }
                    return Poll::Ready(Ok(length));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection closes when it is dropped.
        Poll::Ready(Ok(()))
    }
}

impl Wire {
    /// Writes a response again after a delay, unless the connection has been closed by then.
    fn repeat(&self, response: Vec<u8>, delay: Duration) {
        let stream = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(stream) = stream.upgrade()
                && stream.writable().await.is_ok()
            {
                let _ = stream.try_write(&response);
            }
        });
    }
}

/// Returns the delay of the second response, if the head that is written is marked.
fn delay_of_second(written: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(written).ok()?;
    let (_, value) = text.split_once(&format!("{MARK}: "))?;
    value.split("\r\n").next()?.parse().ok().map(Duration::from_millis)
}
