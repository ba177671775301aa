//! A client that shows everything: status, headers and the bytes of the body, and how the body ended.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use keyfleet_simulator::{Simulator, World};
use serde_json::Value;
use tokio::net::TcpStream;

pub(crate) const SOON: Duration = Duration::from_secs(10);
pub(crate) const CHAT: &str = "/v1beta/openai/chat/completions";
pub(crate) const NATIVE: &str = "/v1beta/models/gemini-2.5-flash:generateContent";
pub(crate) const STREAM: &str = "/v1beta/models/gemini-2.5-flash:streamGenerateContent";
pub(crate) const HELLO: &str = r#"{"contents":[{"parts":[{"text":"hello"}]}]}"#;

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
    /// Whether the body ended as its framing promised.
    pub(crate) whole: bool,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    /// The error's message, wrapped in an array or not.
    pub(crate) fn message(&self) -> String {
        let json = self.json();
        let error = json.get(0).unwrap_or(&json);
        error["error"]["message"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) async fn gemini(world: World) -> Simulator {
    Simulator::start(world).await.unwrap()
}

pub(crate) fn chat(model: &str, stream: bool) -> String {
    format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}],"stream":{stream}}}"#)
}

/// The head of an answer on a connection of its own, or the error of a connection that ended without one.
pub(crate) async fn open(
    to: &Simulator,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Response<Incoming>, hyper::Error> {
    let stream = TcpStream::connect(to.address()).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", to.address().to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender.send_request(request.body(Full::<Bytes>::from(body.to_owned())).unwrap()).await
}

pub(crate) async fn read(response: Response<Incoming>) -> Answer {
    let (head, mut incoming) = response.into_parts();
    let (mut body, mut whole) = (Vec::new(), true);
    while let Some(frame) = incoming.frame().await {
        match frame {
            Ok(frame) => body.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(_) => whole = false,
        }
    }
    Answer { status: head.status.as_u16(), headers: head.headers, body: body.into(), whole }
}

pub(crate) async fn send(
    to: &Simulator,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    read(open(to, method, path, headers, body).await.unwrap()).await
}

/// With the key in the header that belongs to the surface.
pub(crate) async fn post(to: &Simulator, secret: &str, path: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {secret}");
    let header = if path.contains("/openai/") {
        ("authorization", bearer.as_str())
    } else {
        ("x-goog-api-key", secret)
    };
    send(to, "POST", path, &[header, ("content-type", "application/json")], body).await
}

pub(crate) async fn get(to: &Simulator, secret: &str, path: &str) -> Answer {
    send(to, "GET", path, &[("x-goog-api-key", secret)], "").await
}
