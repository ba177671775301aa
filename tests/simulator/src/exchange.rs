//! One request, from its head to its answer, in the order in which Google looks at it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};

use crate::ask::{self, Fields};
use crate::auth::{self, Credentials};
use crate::call::Call;
use crate::chance::Chance;
use crate::connection::Link;
use crate::control;
use crate::deadline;
use crate::errors::{self, Failure};
use crate::faults::{self, Tongue};
use crate::log::Received;
use crate::pool::{Caller, Pool};
use crate::reply::{Outgoing, Reply, Ticket};
use crate::route::{Kind, Op, Route};
use crate::rule::Action;
use crate::rules::{Moment, Subject};
use crate::state::State;

/// The longest body that is read.
const MAX_BODY: usize = 256 * 1024 * 1024;

/// What was decided for a request.
enum Verdict {
    Answer(Reply),
    Reset,
}

pub(crate) async fn serve(
    state: Arc<State>,
    link: Arc<Link>,
    request: Request<Incoming>,
) -> io::Result<Response<Outgoing>> {
    let (head, incoming) = request.into_parts();
    if head.uri.path().starts_with("/__sim/") {
        return control::serve(&state, &head, incoming).await;
    }
    let pool = state.pool();
    let mut visit = Visit::new(&state, &pool, &link, &head);
    let early = visit.take(Moment::Head, None);
    if early.as_ref().is_some_and(|rule| rule.action == Action::Refuse) {
        visit.log(&Bytes::new(), None);
        link.reset_on_close();
        return Err(visit.cut_off("rule:refuse"));
    }
    let pause = match early.map(|rule| rule.action) {
        Some(Action::SlowLorisBody { ms }) => Duration::from_millis(ms),
        _ => Duration::ZERO,
    };
    let (body, whole) = read(incoming, pause).await;
    let fields = visit.route.op.reads_fields().then(|| Fields::parse(&body));
    let named = fields.as_ref().and_then(|fields| ask::model_of(fields.as_ref().ok()?));
    let model = visit.route.op.model().map(str::to_owned).or(named);
    visit.log(&body, model.as_deref());
    let mut ticket = Ticket::new(Arc::clone(&state), visit.seq);
    let verdict = match whole {
        Ok(()) => visit.decide(&body, fields, model.as_deref()),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(errors::too_large_page()),
        Err(error) => return Err(error),
    };
    let reply = match verdict {
        Ok(Verdict::Answer(reply)) => reply,
        Ok(Verdict::Reset) => {
            ticket.broken_off();
            link.reset_on_close();
            return Err(visit.cut_off("rule:reset"));
        }
        Err(failure) => Reply::failure(&failure, visit.route.dialect(head.uri.query())),
    };
    let reply = deadline::keep(reply, &head.headers, visit.tongue());
    if !reply.delay.is_zero() {
        state.update(visit.seq, |entry| reply.tag.as_ref().clone_into(&mut entry.outcome));
        tokio::time::sleep(reply.delay).await;
    }
    ticket.answered(reply.status.as_u16(), &reply.tag);
    Ok(reply.into_response(ticket))
}

/// Reads a body; what has come so far stays readable when the rest does not.
async fn read(mut incoming: Incoming, pause: Duration) -> (Bytes, io::Result<()>) {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let whole = loop {
        match incoming.frame().await {
            None => break Ok(()),
            Some(Err(error)) => break Err(io::Error::other(error)),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if first.len() + rest.len() + data.len() > MAX_BODY {
                    break Err(io::ErrorKind::FileTooLarge.into());
                }
                if first.is_empty() {
                    first = data;
                } else {
                    rest.extend_from_slice(&data);
                }
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
            }
        }
    };
    if rest.is_empty() {
        return (first, whole);
    }
    let mut all = BytesMut::with_capacity(first.len() + rest.len());
    all.extend_from_slice(&first);
    all.extend_from_slice(&rest);
    (all.freeze(), whole)
}

/// A request whose head was read.
struct Visit<'a> {
    state: &'a Arc<State>,
    pool: &'a Pool,
    link: &'a Link,
    head: &'a Parts,
    route: Route,
    rpc: String,
    credentials: Credentials,
    secret: Result<String, Failure>,
    seq: u64,
    at_ms: i64,
    mono_us: u64,
    chance: Chance,
}

impl<'a> Visit<'a> {
    fn new(state: &'a Arc<State>, pool: &'a Pool, link: &'a Link, head: &'a Parts) -> Self {
        let seq = state.next_request();
        let route = Route::of(&head.method, head.uri.path());
        let rpc = route.rpc();
        let query = head.uri.query();
        let credentials = Credentials::of(&head.headers, query);
        // The second step of an upload needs no credential: the session is one.
        let session =
            if matches!(route.op, Op::Upload(_)) { state.store.session_secret(query) } else { None };
        let secret =
            session.map_or_else(|| credentials.secret(route.surface, pool, &rpc).map(str::to_owned), Ok);
        Self {
            state,
            pool,
            link,
            head,
            route,
            rpc,
            credentials,
            secret,
            seq,
            at_ms: state.clock.now_ms(),
            mono_us: u64::try_from(state.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            chance: Chance::new(pool.world.seed, seq),
        }
    }

    /// The pool's key behind any credential of the request, whether or not it was the right way to send it.
    fn caller(&self) -> Option<Caller<'a>> {
        match &self.secret {
            Ok(secret) => self.pool.caller(secret),
            Err(_) => self.credentials.all().find_map(|secret| self.pool.caller(secret)),
        }
    }

    fn take(&mut self, moment: Moment, model: Option<&str>) -> Option<crate::rule::Rule> {
        let caller = self.caller();
        let subject = Subject {
            key: caller.map(|caller| caller.key.id.as_str()),
            project: caller.map(|caller| caller.project.id.as_str()),
            model: model.or_else(|| self.route.op.model()),
            path: self.head.uri.path(),
            method: self.head.method.as_str(),
        };
        self.state.rules.take(moment, subject, &mut self.chance)
    }

    fn decide(
        &mut self,
        body: &Bytes,
        fields: Option<Result<Fields<'_>, Failure>>,
        model: Option<&str>,
    ) -> Result<Verdict, Failure> {
        match self.route.op {
            Op::NoPage => return Err(errors::not_found_page()),
            Op::NoMethod => return Err(Failure::empty("404:method", 404)),
            _ => {}
        }
        self.credentials.check_user_project()?;
        let secret = self.secret.clone()?;
        let caller = self.pool.caller(&secret).ok_or_else(errors::key_invalid)?;
        auth::standing(caller, &self.rpc)?;
        let rule = self.take(Moment::Call, model);
        if rule.as_ref().is_some_and(|rule| rule.action == Action::Reset) {
            return Ok(Verdict::Reset);
        }
        let action = rule.as_ref().map(|rule| &rule.action);
        let mut call = Call {
            state: self.state,
            pool: self.pool,
            local: self.link.local,
            head: self.head,
            route: &self.route,
            rpc: &self.rpc,
            caller,
            body,
            charged: rule.as_ref().is_none_or(|rule| rule.through_quota),
            usage: action != Some(&Action::NoUsage),
            empty: action == Some(&Action::EmptyCandidates),
            blank: action.and_then(Action::blank),
            now_ms: self.at_ms,
            chance: self.chance.clone(),
        };
        let Some(action) = action else { return call.answer(fields).map(Verdict::Answer) };
        let dialect = self.route.dialect(self.head.uri.query());
        let model = model.unwrap_or("unknown").to_owned();
        let mut chance = call.chance.clone();
        let mention = call.mention(&model);
        let mut reply = match faults::instead(action, mention, dialect, &mut chance) {
            Some(reply) => {
                call.charge(&model)?;
                reply
            }
            None => call.answer(fields)?,
        };
        faults::shape(action, &mut reply, call.mention(&model), self.tongue(), &mut chance);
        if *action == Action::GoAway {
            self.link.go_away();
            if self.head.version < http::Version::HTTP_2 {
                reply.headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
            }
        }
        reply.tag = action.tag().into();
        Ok(Verdict::Answer(reply))
    }

    fn tongue(&self) -> Tongue {
        let dialect = self.route.dialect(self.head.uri.query());
        Tongue { surface: self.route.surface, dialect, brotli: self.accepts_brotli() }
    }

    fn accepts_brotli(&self) -> bool {
        let accepted = self.head.headers.get_all(http::header::ACCEPT_ENCODING).iter();
        let mut codings = accepted.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        codings.any(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            let refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
            name.trim().eq_ignore_ascii_case("br") && !refused
        })
    }

    /// Writes the end of a request that gets no answer.
    fn cut_off(&self, outcome: &str) -> io::Error {
        self.state.update(self.seq, |entry| outcome.clone_into(&mut entry.outcome));
        io::ErrorKind::ConnectionReset.into()
    }

    fn log(&self, body: &Bytes, model: Option<&str>) {
        let world = &self.pool.world;
        if !world.log {
            return;
        }
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let caller = self.caller();
        let path = self.head.uri.path_and_query().map_or("", |path| path.as_str());
        let entry = Received {
            seq: self.seq,
            at_ms: self.at_ms,
            mono_us: self.mono_us,
            conn: self.link.id,
            http2: self.head.version == http::Version::HTTP_2,
            method: self.head.method.to_string(),
            path_and_query: path.to_owned(),
            headers: self.head.headers.iter().map(|(n, v)| (n.to_string(), text(v))).collect(),
            key_id: caller.map(|caller| caller.key.id.clone()),
            credentials: self.credentials.kinds.clone(),
            project: caller.map(|caller| caller.project.id.clone()),
            model: model.map(str::to_owned),
            surface: self.route.surface,
            body_sha256: hex(&Sha256::digest(body)),
            body_len: body.len(),
            body: world.log_bodies.then(|| String::from_utf8_lossy(body).into_owned()),
            status: 0,
            outcome: String::new(),
            client_gone: false,
            done: false,
        };
        self.state.log.push(entry, world.log_capacity);
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

impl Op {
    /// Whether the answer depends on fields of a JSON body.
    fn reads_fields(&self) -> bool {
        matches!(
            self,
            Self::Chat
                | Self::CompatEmbeddings
                | Self::Generate { .. }
                | Self::CountTokens(_)
                | Self::Embed(_)
                | Self::BatchEmbed(_)
        )
    }

    /// The model in the path.
    pub(crate) fn model(&self) -> Option<&str> {
        match self {
            Self::GetModel(model)
            | Self::Generate { model, .. }
            | Self::CountTokens(model)
            | Self::Embed(model)
            | Self::BatchEmbed(model)
            | Self::Batch { model, .. }
            | Self::PredictLongRunning(model) => Some(model),
            _ => None,
        }
    }
}

impl Route {
    /// How errors are written here.
    pub(crate) fn dialect(&self, query: Option<&str>) -> errors::Dialect {
        use crate::route::Surface;
        match &self.op {
            _ if self.surface == Surface::Compat => errors::Dialect::Array,
            Op::Generate { stream: true, .. } if !events_asked(query) => errors::Dialect::Array,
            Op::Resource { kind: Kind::Interactions, .. } => errors::Dialect::Interactions,
            _ => errors::Dialect::Object,
        }
    }
}

/// `alt=sse`.
pub(crate) fn events_asked(query: Option<&str>) -> bool {
    query.unwrap_or_default().split('&').any(|pair| pair == "alt=sse")
}
