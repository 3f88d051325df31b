-- Append events to the log and announce them, atomically. Safe to repeat: an event id that the
-- log holds is not stored again.
--
-- KEYS  1 log (stream)  2 meta (hash: epoch, offset and mark of the newest event)  3 ids (hash)
-- ARGV  1 channel  2 epoch, should a new log begin  3 events kept  4 milliseconds kept  5 bytes
--       kept (each may be '': what the application has said, or 10000, an hour, 64 MiB)
--       then for each event: its id, its JSON
-- Answer: epoch, then for each event: offset, mark, mark of its predecessor ('' for a repeat).
--         An epoch of '' says that nothing was stored yet, since the ids of a long log are being
--         read again: call it again.
-- A type below `hybrid.` is refused: those are the protocol's own.
-- The mark of an event is its id and a digest of all up to it, so that no other log has the same
-- one: `epoch.offset.mark` is a cursor.

local OWN = false      -- the package's own processes have checked their types before
local log, meta, ids = KEYS[1], KEYS[2], KEYS[3]
local FIRST = 6
local ENVELOPE = 200   -- about what an entry takes beside its JSON
local STEP = 300000    -- bytes that one call reads to find the ids again: some milliseconds

local function chain(prev, id)
  return id .. '.' .. string.sub(redis.sha1hex(prev .. ' ' .. id), 1, 8)
end

local function is_id(text)
  return text and text ~= '' and #text <= 64 and not string.find(text, '[^%w_~-]')
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if not is_id(ARGV[2]) then
  return redis.error_reply('ERR an epoch has 1 to 64 characters of A-Z a-z 0-9 _ ~ -')
end
for i = FIRST, #ARGV, 2 do
  if not is_id(ARGV[i]) then
    return redis.error_reply('ERR an event id has 1 to 64 characters of A-Z a-z 0-9 _ ~ -')
  end
  if not OWN then
    local read, event = pcall(cjson.decode, ARGV[i + 1])
    if not read or type(event) ~= 'table' or type(event.type) ~= 'string' then
      return redis.error_reply('ERR an event is a JSON object with a type')
    end
    if string.sub(event.type, 1, 7) == 'hybrid.' then
      return redis.error_reply('ERR types that start with hybrid. are reserved for the protocol')
    end
  end
end

local head = redis.call('HMGET', meta, 'epoch', 'offset', 'mark', 'max_events', 'max_ms',
  'max_bytes', 'bytes', 'indexed', 'twice')
local epoch, offset, prev = head[1], tonumber(head[2]), head[3]
local max_events = tonumber(ARGV[3]) or tonumber(head[4]) or 10000
local max_ms = tonumber(ARGV[4]) or tonumber(head[5]) or 3600000
local max_bytes = tonumber(ARGV[5]) or tonumber(head[6]) or 67108864
local bytes, indexed, twice = tonumber(head[7]) or 0, head[8], tonumber(head[9]) or 0
local kept = redis.call('XLEN', log)
local id, proof = string.match(prev or '', '^([^.]*)%.?(.*)')
local is_mark = is_id(id) and (proof == '' or #proof == 8 and not string.find(proof, '[^0-9a-f]'))
local is_place = offset and #head[2] < 16 and not string.find(head[2], '[^%d]')
if not (is_id(epoch) and is_mark and is_place) or (offset > 0 and kept == 0) then
  -- The newest entry is never trimmed: without it this is not the log that meta speaks of. Nor is
  -- it where meta says what no cursor could carry.
  redis.call('UNLINK', log, meta, ids)
  epoch, offset, prev, kept, bytes, twice = ARGV[2], 0, 'origin', 0, 0, 0
elseif indexed or redis.call('HLEN', ids) ~= kept - twice then
  -- The ids are a copy of what the log says. Without all of them nothing can be stored: it might
  -- be there. They are read in steps, since nobody else is served meanwhile.
  if not indexed then
    redis.call('UNLINK', ids)
    indexed = '0'
  end
  local entries, size
  size = 0
  repeat
    entries = redis.call('XRANGE', log, string.format('%.0f-0', indexed + 1), '+', 'COUNT', 20)
    for _, entry in ipairs(entries) do
      indexed = string.match(entry[1], '^%d+')
      redis.call('HSET', ids, entry[2][2], indexed)
      size = size + #entry[2][8] + ENVELOPE
    end
  until #entries < 20 or size > STEP
  if #entries == 20 then
    redis.call('HSET', meta, 'indexed', indexed)
    return {''}
  end
  redis.call('HDEL', meta, 'indexed')
  twice = kept - redis.call('HLEN', ids)  -- somebody else has put them there
end

local answer, messages = {epoch}, {}
for i = FIRST, #ARGV, 2 do
  local id, event = ARGV[i], ARGV[i + 1]
  local known = redis.call('HGET', ids, id)
  if known then
    local fields = redis.call('XRANGE', log, known .. '-0', known .. '-0')[1][2]
    answer[#answer + 1] = known
    answer[#answer + 1] = chain(fields[4], id)
    answer[#answer + 1] = ''
  else
    offset = offset + 1
    local place = string.format('%.0f', offset)
    redis.call('XADD', log, place .. '-0', 'id', id, 'prev', prev, 'stored', now, 'event', event)
    redis.call('HSET', ids, id, place)
    messages[#messages + 1] = table.concat({'e', epoch, place, prev, id, event}, ' ')
    local mark = chain(prev, id)
    answer[#answer + 1] = place
    answer[#answer + 1] = mark
    answer[#answer + 1] = prev
    prev, kept, bytes = mark, kept + 1, bytes + #event + ENVELOPE
  end
end

-- Trim a little with every call; at most this many, so that no call takes long.
local drop, most, place = 0, 100 + #ARGV, '-'
while drop < most and place do
  -- One where there is one too many, as at rest: to look at more would cost more than to store.
  local count = math.min(most - drop, math.max(1, kept - drop - max_events))
  local entries = redis.call('XRANGE', log, place, '+', 'COUNT', count)
  place = nil
  for _, entry in ipairs(entries) do
    local left = kept - drop
    local fits = left <= max_events and bytes <= max_bytes
    if left <= 1 or (fits and tonumber(entry[2][6]) >= now - max_ms) then
      place = nil
      break
    end
    redis.call('HDEL', ids, entry[2][2])
    bytes = math.max(0, bytes - #entry[2][8] - ENVELOPE)
    drop = drop + 1
    place = string.format('%.0f-0', string.match(entry[1], '^%d+') + 1)
  end
end
if drop > 0 then redis.call('XTRIM', log, 'MAXLEN', kept - drop) end
redis.call('HSET', meta, 'epoch', epoch, 'offset', string.format('%.0f', offset), 'mark', prev,
  'max_events', max_events, 'max_ms', max_ms, 'max_bytes', max_bytes, 'bytes', bytes,
  'twice', twice)

-- Only now: a user who may not publish (what Redis 7 makes of a new one) fails here, and a script
-- that fails keeps what it has written. The log is whole by then, the event is found by the probe.
for _, message in ipairs(messages) do redis.call('PUBLISH', ARGV[1], message) end
return answer
