//! The least that a proxy of axum and reqwest can be: it forwards every request as it comes and the answer as it comes
//! back. It chooses nothing, checks nothing and remembers nothing; what the gateway costs above it is the gateway.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::serve::ListenerExt as _;
use clap::Parser;
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};
use tokio::net::TcpListener;

/// A bare proxy of axum and reqwest.
#[derive(Debug, Parser)]
struct Args {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Where everything goes: a URL without a slash at its end.
    #[arg(long)]
    upstream: String,
}

#[derive(Clone)]
struct Upstream {
    client: reqwest::Client,
    url: Arc<str>,
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let args = Args::parse();
    let client = reqwest::Client::builder()
        .no_proxy()
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(io::Error::other)?;
    let upstream = Upstream { client, url: args.upstream.into() };
    // Without it small writes wait for acknowledgements.
    let listener = TcpListener::bind(args.listen).await?.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, Router::new().fallback(forward).with_state(upstream)).await
}

async fn forward(State(upstream): State<Upstream>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut headers = head.headers;
    headers.remove(HOST);
    only_end_to_end(&mut headers);
    let sent = upstream
        .client
        .request(head.method, format!("{}{path}", upstream.url))
        .headers(headers)
        .body(reqwest::Body::wrap_stream(body.into_data_stream()))
        .send()
        .await;
    match sent {
        Ok(answer) => {
            let mut answer = http::Response::from(answer);
            only_end_to_end(answer.headers_mut());
            answer.map(Body::new)
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

fn only_end_to_end(headers: &mut HeaderMap) {
    headers.remove(CONNECTION);
    headers.remove(TRANSFER_ENCODING);
}
