-- Append events to the log and announce them, atomically. Safe to repeat: an event id that the
-- log holds is not stored again.
--
-- KEYS  1 log (stream)  2 meta (hash: epoch, offset, id of the newest event)  3 ids (hash)
-- ARGV  1 channel  2 epoch, should a new log begin  3 events kept  4 milliseconds kept (both
--       may be '': what the application has said, or 10000 and an hour)
--       then for each event: its id, its JSON
-- Answer: epoch, then for each event: offset, id of its predecessor ('' for a repeat)

local log, meta, ids = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

for i = 5, #ARGV, 2 do
  if #ARGV[i] > 64 or not string.match(ARGV[i], '^[%w_~-]+$') then
    return redis.error_reply('ERR an event id has 1 to 64 characters of A-Z a-z 0-9 _ ~ -')
  end
end

local head = redis.call('HMGET', meta, 'epoch', 'offset', 'id', 'max_events', 'max_ms')
local epoch, offset, prev = head[1], tonumber(head[2]), head[3]
local max_events = tonumber(ARGV[3]) or tonumber(head[4]) or 10000
local max_ms = tonumber(ARGV[4]) or tonumber(head[5]) or 3600000
local kept = redis.call('XLEN', log)
if not epoch or (offset > 0 and kept == 0) then
  -- The newest entry is never trimmed: without it this is not the log that meta speaks of.
  redis.call('DEL', log, meta, ids)
  epoch, offset, prev, kept = ARGV[2], 0, 'origin', 0
elseif redis.call('HLEN', ids) ~= kept then
  redis.call('DEL', ids)
  for _, entry in ipairs(redis.call('XRANGE', log, '-', '+')) do
    redis.call('HSET', ids, entry[2][2], string.match(entry[1], '^%d+'))
  end
end

local answer = {epoch}
for i = 5, #ARGV, 2 do
  local id, event = ARGV[i], ARGV[i + 1]
  local known = redis.call('HGET', ids, id)
  if known then
    answer[#answer + 1] = known
    answer[#answer + 1] = ''
  else
    offset = offset + 1
    local place = string.format('%.0f', offset)
    redis.call('XADD', log, place .. '-0', 'id', id, 'prev', prev, 'stored', now, 'event', event)
    redis.call('HSET', ids, id, place)
    redis.call('PUBLISH', ARGV[1], table.concat({'e', epoch, place, prev, id, event}, ' '))
    answer[#answer + 1] = place
    answer[#answer + 1] = prev
    prev, kept = id, kept + 1
  end
end
redis.call('HSET', meta, 'epoch', epoch, 'offset', string.format('%.0f', offset), 'id', prev,
  'max_events', max_events, 'max_ms', max_ms)

-- Trim a little with every call; at most this many, so that no call takes long.
local old, drop = redis.call('XRANGE', log, '-', '+', 'COUNT', 100 + #ARGV), 0
for place, entry in ipairs(old) do
  local too_old = tonumber(entry[2][6]) < now - max_ms
  if kept - drop <= 1 or (kept - drop <= max_events and not too_old) then break end
  redis.call('HDEL', ids, entry[2][2])
  drop = place
end
if drop > 0 then redis.call('XTRIM', log, 'MAXLEN', kept - drop) end
return answer
