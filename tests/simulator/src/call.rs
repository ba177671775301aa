//! A request that is let in: what each method of the API answers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use serde_json::json;

use crate::answer::{Rendered, Turn};
use crate::ask::{self, Ask, Fields};
use crate::auth;
use crate::chance::{Chance, MIXED};
use crate::errors::{self, Failure};
use crate::exchange::events_asked;
use crate::exhausted::{self, Metered};
use crate::family::Mention;
use crate::native::Framing;
use crate::pool::{Caller, Pool};
use crate::reply::{Reply, Step};
use crate::route::{Op, Route, Surface};
use crate::state::State;
use crate::world::Model;
use crate::{batches, compat, embed, files, models, native, operations, pace, resources, search, tuned};

/// The largest body of embeddings.
const EMBEDDED_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) state: &'a Arc<State>,
    pub(crate) pool: &'a Pool,
    pub(crate) local: SocketAddr,
    pub(crate) head: &'a Parts,
    pub(crate) route: &'a Route,
    pub(crate) rpc: &'a str,
    pub(crate) caller: Caller<'a>,
    pub(crate) body: &'a Bytes,
    /// Whether quota is asked and charged.
    pub(crate) charged: bool,
    pub(crate) usage: bool,
    pub(crate) empty: bool,
    pub(crate) blank: Option<&'a str>,
    pub(crate) now_ms: i64,
    pub(crate) chance: Chance,
}

impl<'a> Call<'a> {
    pub(crate) fn answer(&mut self, fields: Option<Result<Fields<'_>, Failure>>) -> Result<Reply, Failure> {
        let route = self.route;
        let fields = || fields.unwrap_or_else(|| Fields::parse(b"{}"));
        let compat = route.surface == Surface::Compat;
        let parallel = self.pool.script.parallel_tools;
        match &route.op {
            Op::Chat => {
                let fields = fields()?;
                let ask = ask::chat(&fields, parallel)?;
                self.generate(&ask)
            }
            Op::Generate { model, stream } => {
                let ask = ask::generate(&fields()?, model, *stream, parallel)?;
                self.generate(&ask)
            }
            Op::CountTokens(model) => self.count_tokens(model, &fields()?),
            Op::CompatEmbeddings | Op::Embed(_) | Op::BatchEmbed(_) => self.embed(&fields()?),
            Op::ListModels if compat => Ok(whole(models::compat_list(&self.pool.world.models))),
            Op::ListModels => {
                let query = self.head.uri.query().unwrap_or_default();
                Ok(whole(models::native_list(&self.pool.world.models, query)))
            }
            Op::GetModel(model) => {
                let found = self.model(model, "getModel", None)?;
                Ok(whole(if compat { models::compat_one(found) } else { models::native_one(found) }))
            }
            Op::CompatImages => Ok(whole(models::compact(&json!({
                "created": self.now_ms / 1000, "data": [{"b64_json": PIXEL}],
            })))),
            Op::Batch { model, embeds } => batches::create(self, model, *embeds),
            Op::PredictLongRunning(model) => operations::predict(self, model),
            Op::Upload(store) => files::upload(self, store.as_deref()),
            Op::Download(id) => files::download(self, id),
            Op::Resource { kind, id, verb } => resources::serve(self, *kind, id.as_deref(), verb.as_deref()),
            Op::Operation { name, verb } => operations::serve(self, name, verb.as_deref()),
            Op::ListDocuments(store) => search::list_documents(self, store),
            Op::NoPage | Op::NoMethod => Err(errors::not_found_page()),
        }
    }

    pub(crate) fn mention<'m>(&self, model: &'m str) -> Mention<'m>
    where
        'a: 'm,
    {
        Mention {
            secret: &self.caller.key.secret,
            project_number: self.caller.project.number,
            rpc: self.rpc,
            version: self.version(),
            metered: self.metered(model),
            quota: self.pool.world.quota,
            window_ms: self.pool.world.window_ms,
        }
    }

    fn metered<'m>(&self, model: &'m str) -> Metered<'m> {
        let embedding = self.pool.model(model).is_some_and(|model| model.embedding);
        Metered { model, paid: self.caller.project.paid, embedding }
    }

    fn version(&self) -> &'a str {
        if self.route.surface == Surface::Compat { "v1main" } else { &self.route.version }
    }

    pub(crate) fn prompt_tokens(&self) -> u64 {
        (self.body.len() as u64 / 4).max(1)
    }

    /// Billing and quota of one call to a model.
    pub(crate) fn charge(&mut self, model: &str) -> Result<(), Failure> {
        if !self.charged {
            return Ok(());
        }
        auth::billing(self.caller, self.pool)?;
        let (tokens, spending) = (self.prompt_tokens(), &self.caller.ledger.spending);
        if !spending.allows(self.now_ms) {
            return Err(exhausted::spend_rate());
        }
        self.caller.ledger.admit(model, tokens, &self.state.clock).map_err(|violations| {
            exhausted::quota(&violations, self.metered(model), self.pool.world.quota, &mut self.chance)
        })?;
        spending.add(tokens + self.pool.script.plain.tokens, self.now_ms);
        Ok(())
    }

    /// Billing of work that is done later, and the quota of its own that a limit can be set for by `what`.
    pub(crate) fn charge_apart(&mut self, what: &str) -> Result<(), Failure> {
        if !self.charged {
            return Ok(());
        }
        auth::billing(self.caller, self.pool)?;
        let admitted = self.caller.ledger.admit(what, self.prompt_tokens(), &self.state.clock);
        admitted.map_err(|_| exhausted::no_details())
    }

    /// A model by its id, or the one that a tuned model of the caller's is based on.
    pub(crate) fn model(
        &self,
        id: &str,
        method: &str,
        embedding: Option<bool>,
    ) -> Result<&'a Model, Failure> {
        let base = tuned::base(self, id)?;
        let id = base.as_deref().unwrap_or(id);
        let id = id.strip_prefix("models/").unwrap_or(id);
        let found = self.pool.model(id).filter(|model| embedding.is_none_or(|kind| model.embedding == kind));
        let Some(found) = found else { return Err(errors::model_not_found(id, self.version(), method)) };
        if self.caller.key.models_not_available.iter().any(|model| model == id) {
            return Err(errors::model_not_available(id));
        }
        Ok(found)
    }

    fn generate(&mut self, ask: &Ask) -> Result<Reply, Failure> {
        let method = if ask.stream { "streamGenerateContent" } else { "generateContent" };
        let model = self.model(&ask.model, method, Some(false))?;
        let tokens = self.prompt_tokens();
        self.check_size(self.pool.world.inline_bytes)?;
        if tokens > model.input_token_limit {
            return Err(errors::bad_request(
                "400:too_long",
                format!(
                    "The input token count ({tokens}) exceeds the maximum number of tokens allowed ({}).",
                    model.input_token_limit
                ),
            ));
        }
        let cached_tokens = files::check_references(self)?;
        self.charge(&model.id)?;
        let id = self.chance.id(22, MIXED);
        let mut turn = Turn {
            script: &self.pool.script,
            model: if ask.model.starts_with(tuned::PREFIX) { &ask.model } else { &model.id },
            prompt_tokens: tokens,
            cached_tokens,
            calls: &ask.calls,
            include_thoughts: ask.include_thoughts,
            id,
            created_s: self.now_ms / 1000,
            usage: self.usage,
            empty: self.empty,
            blank: self.blank,
            chance: self.chance.clone(),
        };
        let framing = if events_asked(self.head.uri.query()) { Framing::Events } else { Framing::Array };
        let rendered = match (self.route.surface, ask.stream) {
            (Surface::Compat, true) => compat::stream(&mut turn),
            (Surface::Compat, false) => compat::plain(&mut turn),
            (_, true) => native::stream(&mut turn, framing),
            (_, false) => native::plain(&mut turn),
        };
        Ok(self.paced(rendered))
    }

    fn check_size(&self, limit: usize) -> Result<(), Failure> {
        if self.body.len() > limit { Err(errors::payload_size(limit)) } else { Ok(()) }
    }

    pub(crate) fn paced(&mut self, rendered: Rendered) -> Reply {
        let streamed = rendered.streamed;
        let mut reply = Reply::new(StatusCode::OK, rendered.content_type, Bytes::new());
        let latency = self.pool.world.latency;
        (reply.delay, reply.steps) = pace::schedule(latency, rendered, &self.pool.script, &mut self.chance);
        reply.sized = !streamed;
        reply
    }

    fn count_tokens(&self, model: &str, fields: &Fields<'_>) -> Result<Reply, Failure> {
        self.model(model, "countTokens", None)?;
        if fields.get("contents") == Some("null") {
            return Ok(whole(models::pretty(&json!({}))));
        }
        if fields.get("contents").is_none() && fields.get("generateContentRequest").is_none() {
            return Err(errors::bad_request(
                "400:contents",
                "* CountTokensRequest.contents: contents is not specified\n",
            ));
        }
        let cached = files::check_references(self)?;
        let tokens = self.prompt_tokens() + cached;
        let mut body = json!({
            "totalTokens": tokens, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}],
        });
        if cached > 0 {
            body["cachedContentTokenCount"] = json!(cached);
        }
        Ok(whole(models::pretty(&body)))
    }

    fn embed(&mut self, fields: &Fields<'_>) -> Result<Reply, Failure> {
        let compat = self.route.surface == Surface::Compat;
        let named = ask::model_of(fields).unwrap_or_default();
        let id = self.route.op.model().map_or(named, str::to_owned);
        let batch = matches!(self.route.op, Op::BatchEmbed(_));
        let ask =
            if compat { ask::compat_embeddings(fields)? } else { ask::native_embeddings(fields, batch)? };
        let model = self.model(&id, "embedContent", Some(true))?;
        self.check_size(EMBEDDED_BYTES)?;
        self.charge(&model.id)?;
        let rendered = if compat {
            embed::compat(&ask, &model.id, model.dimensions)
        } else {
            embed::native(&ask, model.dimensions, batch)
        };
        Ok(self.paced(rendered))
    }
}

pub(crate) fn whole(rendered: Rendered) -> Reply {
    let mut reply = Reply::new(StatusCode::OK, rendered.content_type, Bytes::new());
    reply.steps = rendered.frames.into_iter().map(Step::Data).collect::<VecDeque<_>>();
    reply
}

/// A transparent pixel as PNG.
const PIXEL: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
