//! Clients that go on asking, one request at a time each, through a load balancer that is not fair.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{Answer, Client};

/// As many requests are remembered one by one.
const MOST_ODD: usize = 20;

/// As many are remembered with their times; later ones are in the sums only.
const MOST_SAMPLES: usize = 1_000_000;

/// The gateways that a load balancer sends clients to. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Front(Arc<Mutex<Vec<Client>>>);

impl Front {
    /// Everybody is sent to one place, which sees further.
    pub fn to(client: Client) -> Self {
        let front = Self::default();
        front.set(vec![client]);
        front
    }

    pub(super) fn set(&self, clients: Vec<Client>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = clients;
    }

    /// The first gateway gets twice as much as the second, three times as much as the third, and so on.
    pub fn pick(&self, random: &mut fastrand::Rng) -> Client {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shares: Vec<f64> =
            (1..=u32::try_from(clients.len()).unwrap_or(1)).map(|n| 1.0 / f64::from(n)).collect();
        let mut at = random.f64() * shares.iter().sum::<f64>();
        let chosen = shares.iter().position(|share| {
            at -= share;
            at < 0.0
        });
        clients[chosen.unwrap_or_default()].clone()
    }
}

/// What became of requests.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// How many ended how: a status, `no connection`, `no answer`, `broken answer`.
    pub ends: BTreeMap<String, u64>,
    /// The slowest answer.
    pub slowest: Duration,
    /// The first that were not answered with 200: when they ended, since the clients began, and how.
    pub odd: Vec<(Duration, String)>,
}

impl Tally {
    /// How many ended so.
    pub fn of(&self, end: &str) -> u64 {
        self.ends.get(end).copied().unwrap_or_default()
    }

    /// All that were neither answered nor refused for want of quota.
    pub fn failures(&self) -> BTreeMap<&str, u64> {
        let failures = self.ends.iter().filter(|(end, _)| !["200", "429"].contains(&end.as_str()));
        failures.map(|(end, n)| (end.as_str(), *n)).collect()
    }

    fn add(&mut self, other: &Self) {
        for (end, n) in &other.ends {
            *self.ends.entry(end.clone()).or_default() += n;
        }
        self.slowest = self.slowest.max(other.slowest);
        self.odd.extend(other.odd.iter().take(MOST_ODD - self.odd.len()).cloned());
    }
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When it was sent.
    pub began: Instant,
    /// When it had ended.
    pub ended: Instant,
    /// The status of a whole answer; 0: there was none.
    pub status: u16,
}

/// What a client may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// Of which model.
    pub model: &'static str,
    /// As a stream.
    pub stream: bool,
}

/// Running clients.
#[derive(Debug)]
pub struct Crowd {
    stop: watch::Sender<bool>,
    record: Arc<Mutex<Record>>,
    clients: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Record {
    tally: Tally,
    samples: Vec<Sample>,
}

impl Crowd {
    /// `size` clients, each of which asks `model` and then rests for about `pause`.
    pub fn start(front: &Front, size: u64, pause: Duration, model: &'static str, seed: u64) -> Self {
        Self::wishing(front, size, pause, &[Wish { model, stream: false }], seed)
    }

    /// As [`Crowd::start`], and each request is for one of these.
    pub fn wishing(front: &Front, size: u64, pause: Duration, wishes: &[Wish], seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let record = Arc::new(Mutex::new(Record::default()));
        let mut clients = JoinSet::new();
        for client in 0..size {
            let random = fastrand::Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(client));
            let wishes = wishes.to_vec();
            let life = Life { front: front.clone(), wishes, random, pause, record: record.clone() };
            clients.spawn(life.live(stopped.clone()));
        }
        Self { stop, record, clients }
    }

    /// What became of their requests so far.
    pub fn tally(&self) -> Tally {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).tally.clone()
    }

    /// Their requests so far, in the order in which they ended.
    pub fn samples(&self) -> Vec<Sample> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).samples.clone()
    }

    /// Lets every client end its request, and says what became of all.
    pub async fn stop(self) -> Tally {
        self.end().await.0
    }

    /// As [`Crowd::stop`], with each request.
    pub async fn end(mut self) -> (Tally, Vec<Sample>) {
        self.stop.send_replace(true);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client lives until it is stopped");
        }
        let record = std::mem::take(&mut *self.record.lock().unwrap_or_else(PoisonError::into_inner));
        (record.tally, record.samples)
    }
}

/// One client.
struct Life {
    front: Front,
    wishes: Vec<Wish>,
    random: fastrand::Rng,
    pause: Duration,
    record: Arc<Mutex<Record>>,
}

impl Life {
    async fn live(mut self, mut stop: watch::Receiver<bool>) {
        let start = Instant::now();
        loop {
            // From a half to one and a half of it.
            let rest = self.pause.mul_f64(0.5 + self.random.f64());
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(rest) => {}
            }
            let Wish { model, stream } = self.wishes[self.random.usize(..self.wishes.len())];
            let began = Instant::now();
            let answer = self.front.pick(&mut self.random).chat(model, stream).await;
            let (status, end) = match answer {
                Ok(answer) if !answer.whole || (stream && !is_done(&answer)) => {
                    (0, "broken answer".to_owned())
                }
                Ok(answer) => (answer.status, answer.status.to_string()),
                Err(error) if error.is_connect() => (0, "no connection".to_owned()),
                Err(_) => (0, "no answer".to_owned()),
            };
            let odd = if status == 200 { Vec::new() } else { vec![(start.elapsed(), end.clone())] };
            let ended = Instant::now();
            let one = Tally { ends: BTreeMap::from([(end, 1)]), slowest: ended - began, odd };
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            record.tally.add(&one);
            if record.samples.len() < MOST_SAMPLES {
                record.samples.push(Sample { began, ended, status });
            }
        }
    }
}

/// A stream of an answer ends with a mark of its own; another answer needs none.
fn is_done(answer: &Answer) -> bool {
    answer.status != 200 || answer.text.ends_with("data: [DONE]\n\n")
}
