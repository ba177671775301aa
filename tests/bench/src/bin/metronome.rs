//! An upstream that answers every POST with a stream of events at a fixed pace. Each event says when it left, which no
//! real upstream and no simulator of one does; the pace is kept by the clock, so that a slow reader gets what it
//! missed at once instead of a later beat.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::serve::ListenerExt as _;
use clap::Parser;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use keyfleet_bench::{MODEL, now_ns, stamp};
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval};

/// Streams of events at a fixed pace.
#[derive(Debug, Parser)]
struct Args {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Events of a stream.
    #[arg(long)]
    chunks: u32,
    /// Milliseconds between two events.
    #[arg(long)]
    gap_ms: u64,
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let Args { listen, chunks, gap_ms } = Args::parse();
    let gap = Duration::from_millis(gap_ms.max(1));
    let listener = TcpListener::bind(listen).await?.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    // A request's body is read to its end, so that its connection can be used again.
    let answer = move |_: Bytes| async move { beats(chunks, gap) };
    axum::serve(listener, Router::new().fallback(get(models).post(answer))).await
}

/// What a gateway asks for to learn whether its keys are good.
async fn models() -> Response {
    let list = format!(r#"{{"object":"list","data":[{{"id":"models/{MODEL}","object":"model"}}]}}"#);
    ([(CONTENT_TYPE, "application/json")], list).into_response()
}

fn beats(chunks: u32, gap: Duration) -> Response {
    let mut beat = interval(gap);
    beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let events = stream::unfold((0, beat), move |(sent, mut beat)| async move {
        if sent == chunks {
            return None;
        }
        beat.tick().await;
        Some((Ok::<_, Infallible>(event(sent + 1 == chunks)), (sent + 1, beat)))
    });
    let done = stream::once(async { Ok(Bytes::from_static(b"data: [DONE]\n\n")) });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(events.chain(done))).into_response()
}

fn event(last: bool) -> Bytes {
    let end = if last { r#""finish_reason":"stop","# } else { "" };
    let text = "twelve tokens of an answer that nobody will ever read, again";
    let stamp = stamp(now_ns());
    Bytes::from(format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\",\"role\":\"assistant\"}},{end}\"index\":0}}],\
         \"created\":1,\"id\":\"beat\",\"model\":\"{MODEL}\",\"object\":\"chat.completion.chunk\",{stamp}}}\n\n"
    ))
}
