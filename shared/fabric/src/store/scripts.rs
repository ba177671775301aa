//! Everything that runs inside Redis. Each script is one atomic step on the keys of one partition.
//!
//! Numbers are compared as text, by length and then by digits: Lua's own are floating-point and lose what is above
//! 2^53. Whatever can be refused is refused before the first write, since Redis does not undo a script.

use fred::types::scripts::Script;

/// Common to all: comparing and counting decimal numbers, and reading what stands beside the entries.
const PRELUDE: &str = r"
local function above(a, b)
  if #a ~= #b then return #a > #b end
  return a > b
end

local function successor(n)
  local head, nines = string.match(n, '^(%d-)(9*)$')
  local zeros = string.rep('0', #nines)
  if head == '' then return '1' .. zeros end
  return string.sub(head, 1, -2) .. tostring(tonumber(string.sub(head, -1)) + 1) .. zeros
end

local function read_meta(key)
  local meta = redis.call('HMGET', key, 'epoch', 'commit', 'rev', 'time', 'at', 'cursor', 'blind', 'stream',
    'leader', 'store', 'author')
  for i = 1, 7 do meta[i] = meta[i] or '0' end
  for i = 8, 11 do meta[i] = meta[i] or '' end
  return meta
end
";

/// Takes the leadership, keeps it, or gives it up.
///
/// - `KEYS`: lock, meta.
/// - `ARGV`: holder, time to live in ms (0: give up), epoch held (0: none), floor of a new epoch, ledger time and
///   calendar (both empty: not to be stored).
/// - Returns `{'mine', meta…}`, `{'theirs', holder, epoch, ms left}`, `{'nobody'}` or `{'spent'}` (no number is left
///   for an epoch).
const LEAD: &str = r"
local meta = read_meta(KEYS[2])
local holder = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
-- A lock without an end is none of ours: nobody would ever lead again.
if left < 0 then holder = false end
local same_epoch = ARGV[3] == meta[1] and ARGV[1] == meta[9]
if holder and (holder ~= ARGV[1] or (ARGV[3] ~= '0' and not same_epoch)) then
  return {'theirs', holder, meta[1], tostring(left)}
end
if ARGV[3] ~= '0' and not same_epoch then return {'nobody'} end
if ARGV[2] ~= '0' and ARGV[3] == '0' then
  local epoch = meta[1]
  if above(ARGV[4], epoch) then epoch = ARGV[4] end
  epoch = successor(epoch)
  if above(epoch, '18446744073709551615') then return {'spent'} end
  meta[1] = epoch
  meta[9] = ARGV[1]
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'leader', ARGV[1])
elseif ARGV[3] ~= '0' and ARGV[5] ~= '' and above(ARGV[5], meta[4]) then
  meta[4] = ARGV[5]
  meta[5] = ARGV[6]
  redis.call('HSET', KEYS[2], 'time', meta[4], 'at', meta[5])
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return {'nobody'}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'mine', unpack(meta)}
";

/// Writes a commit.
///
/// - `KEYS`: meta, heard, out, and the tables.
/// - `ARGV`: the commit that it follows; the eleven fields of meta, in the order of `read_meta` but for the stream
///   before the blind time; the revision of the decisions and the decisions (both empty: none), how many are kept; the number of publishers, and for each its name and number; then for each
///   table the number of entries and the entries (key, value), the number of removed ones and their keys.
/// - Returns `{'done'}`, `{'fenced', epoch}` or `{'conflict', meta…}`. An epoch given out twice, by a store that lost
///   writes, is told by its leader.
const COMMIT: &str = r"
local meta = read_meta(KEYS[1])
if above(meta[1], ARGV[2]) then return {'fenced', meta[1]} end
local conflict = {'conflict', unpack(meta)}
if meta[1] ~= ARGV[2] or meta[9] ~= ARGV[10] or meta[2] ~= ARGV[1] then return conflict end

local heard = {}
local position = 17
for i = position, position + 2 * tonumber(ARGV[16]) - 1, 2 do
  local id, seq = ARGV[i], ARGV[i + 1]
  if seq ~= '0' then
    local known = heard[id] or redis.call('HGET', KEYS[2], id) or '0'
    if not above(seq, known) then return conflict end
  end
  heard[id] = seq
end
position = position + 2 * tonumber(ARGV[16])

if ARGV[13] ~= '' then
  local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
  local known = last and string.match(last[1], '^%d+') or '0'
  if not above(ARGV[13], known) then return conflict end
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[15], ARGV[13] .. '-0', 'd', ARGV[14])
end

for id, seq in pairs(heard) do
  if seq == '0' then redis.call('HDEL', KEYS[2], id) else redis.call('HSET', KEYS[2], id, seq) end
end

-- Lua's stack bounds what one call can take; pairs stay together, since the step is even.
local function write(command, key, count)
  for i = position, position + count - 1, 4000 do
    redis.call(command, key, unpack(ARGV, i, math.min(i + 3999, position + count - 1)))
  end
  position = position + count
end
for i = 4, #KEYS do
  local count = tonumber(ARGV[position])
  position = position + 1
  write('HSET', KEYS[i], 2 * count)
  count = tonumber(ARGV[position])
  position = position + 1
  write('HDEL', KEYS[i], count)
end

local time, at = meta[4], meta[5]
if above(ARGV[5], time) then time, at = ARGV[5], ARGV[6] end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'commit', ARGV[3], 'rev', ARGV[4], 'time', time, 'at', at,
  'cursor', ARGV[7], 'stream', ARGV[8], 'blind', ARGV[9], 'store', ARGV[11], 'author', ARGV[12])
return {'done'}
";

/// Everything at one moment.
///
/// - `KEYS`: meta, heard, and the tables.
/// - Returns meta, heard and the tables, the latter as lists of names and values in turn.
const LOAD: &str = r"
local all = {read_meta(KEYS[1])}
for i = 2, #KEYS do all[i] = redis.call('HGETALL', KEYS[i]) end
return all
";

/// The decisions from a revision on.
///
/// - `KEYS`: meta, out.
/// - `ARGV`: the revision, and how many at most.
/// - Returns the stored revision and the decisions.
const SINCE: &str = r"
local found = redis.call('XRANGE', KEYS[2], ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])
for i = 1, #found do found[i] = found[i][2][2] end
return {read_meta(KEYS[1])[3], found}
";

/// What the server says of itself. It is asked from a script so that a cluster answers from where the partition is.
///
/// - `KEYS`: meta.
/// - Returns three sections of its report: server, replication, memory.
const INFO: &str = r"
return {redis.call('INFO', 'server'), redis.call('INFO', 'replication'), redis.call('INFO', 'memory')}
";

/// All scripts, with their hashes.
pub(super) struct Scripts {
    /// See [`LEAD`].
    pub(super) lead: Script,
    /// See [`COMMIT`].
    pub(super) commit: Script,
    /// See [`LOAD`].
    pub(super) load: Script,
    /// See [`SINCE`].
    pub(super) since: Script,
    /// See [`INFO`].
    pub(super) info: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        let script = |body: &str| Script::from_lua(format!("{PRELUDE}{body}"));
        Self {
            lead: script(LEAD),
            commit: script(COMMIT),
            load: script(LOAD),
            since: script(SINCE),
            info: script(INFO),
        }
    }
}
