//! An API server as far as `helm` needs one: discovery, objects in memory, and controllers that are done at once.
//!
//! It does not judge what it is given, except that what is immutable stays; schemas are checked elsewhere, against those
//! of Kubernetes. The pods of jobs and tests run as processes of this machine.

mod controllers;
mod discovery;
mod patch;
mod protobuf;
mod run;
mod selectors;
mod store;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use selectors::Selectors;
use store::{Id, Store};

/// A running server.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    store: Arc<Store>,
    task: AbortHandle,
}

impl ApiServer {
    /// Starts one without any objects.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port for the API server");
        let address = listener.local_addr().expect("its address");
        let store = Arc::<Store>::default();
        let routes = Router::new().fallback(answer).with_state(store.clone());
        let serve = async move { axum::serve(listener, routes).await.expect("it serves") };
        Self { address, store, task: tokio::spawn(serve).abort_handle() }
    }

    /// What a client needs to find it.
    pub fn kubeconfig(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "current-context": "here",
        })
    }

    /// An object of the namespace `default`, by its resource (as `deployments`) and its name.
    pub fn object(&self, resource: &str, name: &str) -> Option<Value> {
        self.store.get(&Id::new(resource, "default", name))
    }

    /// What there is: a resource and a name each, as `deployments/keyfleet`.
    pub fn everything(&self) -> Vec<String> {
        self.store.names()
    }

    /// Behind a Service there is something at this address (`127.0.0.1:1234`): pods that run here find it.
    pub fn stand_in(&self, service: &str, address: &str) {
        self.store.stand_in(service, address);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Something is wrong with a request: the status, and the word that clients look at.
struct Refusal(StatusCode, &'static str, String);

impl Refusal {
    fn not_found(what: &str) -> Self {
        Self(StatusCode::NOT_FOUND, "NotFound", format!("{what} not found"))
    }

    fn conflict(what: &str) -> Self {
        Self(StatusCode::CONFLICT, "AlreadyExists", format!("{what} already exists"))
    }

    fn invalid(what: &str) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", what.to_owned())
    }
}

/// A request for objects.
struct Ask {
    api_version: String,
    resource: String,
    namespace: Option<String>,
    name: Option<String>,
    sub: Option<String>,
}

impl Ask {
    /// `/api/v1/namespaces/default/pods/it/log`, `/apis/apps/v1/deployments`, `/api/v1/namespaces/default`.
    fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (api_version, rest) = match parts[..] {
            ["api", "v1", ref rest @ ..] => ("v1".to_owned(), rest),
            ["apis", group, version, ref rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, rest) = match *rest {
            ["namespaces", namespace, ref rest @ ..] if !rest.is_empty() => (Some(namespace), rest),
            ref rest => (None, rest),
        };
        let owned = |at: usize| rest.get(at).map(|part| (*part).to_owned());
        Some(Self {
            api_version,
            resource: owned(0)?,
            namespace: namespace.map(str::to_owned),
            name: owned(1),
            sub: owned(2),
        })
    }

    fn id(&self, name: &str) -> Id {
        Id::new(&self.resource, self.namespace.as_deref().unwrap_or_default(), name)
    }
}

type Parameters = Query<Vec<(String, String)>>;

async fn answer(
    State(store): State<Arc<Store>>,
    method: Method,
    uri: Uri,
    Query(query): Parameters,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(found) = discovery::answer(uri.path()) {
        return found;
    }
    let content_type = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let body = read(content_type, &body);
    let answered = match Ask::parse(uri.path()) {
        Some(ask) => about(&store, &method, &ask, &query, content_type, body.as_ref()),
        None => Err(Refusal::not_found(uri.path())),
    };
    answered.unwrap_or_else(|Refusal(code, reason, message)| {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": reason, "message": message, "code": code.as_u16(),
        });
        (code, axum::Json(status)).into_response()
    })
}

/// What was sent; nothing, if that cannot be read, as the options of a deletion may be.
fn read(content_type: &str, body: &[u8]) -> Option<Value> {
    if content_type.contains("json") { serde_json::from_slice(body).ok() } else { protobuf::secret(body) }
}

fn about(
    store: &Arc<Store>,
    method: &Method,
    ask: &Ask,
    query: &[(String, String)],
    content_type: &str,
    body: Option<&Value>,
) -> Result<Response, Refusal> {
    let has = |name: &str, value: &str| query.iter().any(|(key, found)| key == name && found == value);
    let json = |code: StatusCode, value: Value| Ok((code, axum::Json(value)).into_response());
    let body = || body.cloned().ok_or_else(|| Refusal::invalid("a body that cannot be read"));
    let dry = has("dryRun", "All");
    match (method.as_str(), &ask.name) {
        ("GET", None) => {
            let selectors = Selectors::of(query)?;
            if has("watch", "true") || has("watch", "1") {
                return Ok(watch(store.clone(), ask, selectors, query));
            }
            json(StatusCode::OK, list(store, ask, &selectors))
        }
        ("GET", Some(name)) if ask.sub.as_deref() == Some("log") => {
            Ok(store.log_of(&ask.id(name)).unwrap_or_default().into_response())
        }
        ("GET", Some(name)) => {
            let object = store.get(&ask.id(name)).ok_or_else(|| missing(ask, name))?;
            json(StatusCode::OK, object)
        }
        ("POST", None) => {
            let mut object = body()?;
            object["apiVersion"] = ask.api_version.clone().into();
            json(StatusCode::CREATED, store.create(&ask.id(&name_of(&object)?), object, dry)?)
        }
        ("PUT", Some(name)) => {
            let object = body()?;
            let change = move |_: &Value| Ok(object);
            json(StatusCode::OK, store.change(&ask.id(name), change, dry)?)
        }
        ("PATCH", Some(name)) => {
            let patch = body()?;
            let strategic = content_type.starts_with("application/strategic-merge-patch+json");
            if !strategic && !content_type.starts_with("application/merge-patch+json") {
                return Err(Refusal::invalid(content_type));
            }
            let change = |object: &Value| Ok(patch::patched(object, &patch, strategic));
            json(StatusCode::OK, store.change(&ask.id(name), change, dry)?)
        }
        ("DELETE", Some(name)) => {
            let gone = store.delete(&ask.id(name), dry).ok_or_else(|| missing(ask, name))?;
            json(StatusCode::OK, gone)
        }
        _ => Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", method.to_string())),
    }
}

fn missing(ask: &Ask, name: &str) -> Refusal {
    Refusal::not_found(&format!("{} \"{name}\"", ask.resource))
}

fn name_of(object: &Value) -> Result<String, Refusal> {
    let name = object["metadata"]["name"].as_str();
    name.map(str::to_owned).ok_or_else(|| Refusal::invalid("an object without a name"))
}

fn list(store: &Store, ask: &Ask, selectors: &Selectors) -> Value {
    let version = store.version();
    let mut items = store.list(&ask.resource, ask.namespace.as_deref());
    items.retain(|object| selectors.match_with(object));
    let kind = discovery::kind(&ask.resource).unwrap_or_default();
    json!({
        "kind": format!("{kind}List"), "apiVersion": ask.api_version,
        "metadata": {"resourceVersion": version.to_string()}, "items": items,
    })
}

/// What happens to objects after the version that the client has seen, a line each, until it goes away.
fn watch(store: Arc<Store>, ask: &Ask, selectors: Selectors, query: &[(String, String)]) -> Response {
    let seen = query.iter().find(|(name, _)| name == "resourceVersion").map(|(_, version)| version);
    let seen = seen.and_then(|version| version.parse().ok()).unwrap_or_else(|| store.version());
    let (resource, namespace) = (ask.resource.clone(), ask.namespace.clone());
    let start = (store, seen, resource, namespace, selectors);
    let lines = stream::unfold(start, async |(store, seen, resource, namespace, selectors)| {
        let (version, events) = store.after(seen, &resource, namespace.as_deref()).await;
        let events = events.into_iter().filter(|event| selectors.match_with(&event["object"]));
        let mut lines = String::new();
        for event in events {
            lines += &event.to_string();
            lines.push('\n');
        }
        Some((Ok::<_, std::convert::Infallible>(lines), (store, version, resource, namespace, selectors)))
    });
    ([("content-type", "application/json")], Body::from_stream(lines)).into_response()
}
