//! One connection to what is measured, and one request after the other on it.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use keyfleet_bench::{MODEL, PATH};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::tally::{EventCount, Tally};

/// What is asked, and where.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    address: SocketAddr,
    headers: HeaderMap,
    body: Bytes,
    /// What has not been answered by then has failed.
    pub(crate) deadline: Instant,
}

impl Target {
    pub(crate) fn new(address: SocketAddr, bearer: &str, body: Bytes, deadline: Instant) -> io::Result<Self> {
        let value = |text: String| HeaderValue::try_from(text).map_err(io::Error::other);
        let mut headers = HeaderMap::new();
        headers.insert(HOST, value(address.to_string())?);
        headers.insert(AUTHORIZATION, value(format!("Bearer {bearer}"))?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Self { address, headers, body, deadline })
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = http::Uri::from_static(PATH);
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// A conversation of several messages whose prompt makes up the length.
pub(crate) fn body(bytes: usize, stream: bool) -> Bytes {
    let render = |prompt: &str| {
        json!({
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "You are \"terse\".\nAnswer in one line."},
                {"role": "user", "content": prompt},
            ],
            "temperature": 0.7,
            "stream": stream,
        })
        .to_string()
    };
    let words = "All happy families are alike; every unhappy family is \"unhappy\" in its own way.\n";
    let mut prompt = String::new();
    // Each round adds what is missing; escapes make a text longer than it looks, so the last ones add little.
    for _ in 0..8 {
        let missing = bytes.saturating_sub(render(&prompt).len());
        prompt.extend(words.chars().cycle().skip(prompt.len() % words.len()).take(missing * 9 / 10));
    }
    Bytes::from(render(&prompt))
}

/// A connection that is kept alive.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub(crate) async fn open(target: &Target) -> Result<Self, String> {
        let stream = TcpStream::connect(target.address).await.map_err(|error| describe(&error))?;
        stream.set_nodelay(true).map_err(|error| describe(&error))?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| describe(&error))?;
        // How it ends is seen by the request that it ends under.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender })
    }

    /// Sends one request and reads the answer to its end. Whether the connection can be used again.
    pub(crate) async fn ask(&mut self, target: &Target, tally: &mut Tally) -> bool {
        let began = Instant::now();
        match timeout_at(target.deadline, self.exchange(target, tally)).await {
            Ok(Ok(StatusCode::OK)) => tally.answered(began.elapsed()),
            Ok(Ok(status)) => tally.failed(status.as_str().to_owned()),
            Ok(Err(error)) => {
                tally.failed(describe(&error));
                return false;
            }
            Err(_) => {
                tally.failed("not answered in time".to_owned());
                return false;
            }
        }
        self.sender.ready().await.is_ok()
    }

    async fn exchange(&mut self, target: &Target, tally: &mut Tally) -> hyper::Result<StatusCode> {
        let (head, mut body) = self.sender.send_request(target.request()).await?.into_parts();
        let is_stream = head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
        let mut events = EventCount::default();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame?.data_ref().filter(|_| is_stream) {
                tally.arrived(data, &mut events);
            }
        }
        Ok(head.status)
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_the_length_asked_for() {
        for bytes in [1_000, 100_000] {
            let body = body(bytes, true);
            assert!((bytes - 10..=bytes).contains(&body.len()), "{}", body.len());
            assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["stream"], true);
        }
    }
}
