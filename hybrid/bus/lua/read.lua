-- What follows a position in the log, if the log can prove that the position is its own.
--
-- KEYS  1 log (stream)  2 meta (hash)
-- ARGV  1 epoch ('' for the oldest entry after the offset, unproven)  2 offset  3 mark
--       4 entries at most  5 bytes at most (but one entry at least)
-- Answer: verdict ('ok', 'empty', 'epoch', 'rollback', 'expired', 'forked'), epoch, the newest
--         offset and its mark, then for each entry: offset, predecessor's mark, id, event

local log, meta = KEYS[1], KEYS[2]
local head = redis.call('HMGET', meta, 'epoch', 'offset', 'mark')
local epoch, last, mark = head[1], tonumber(head[2]), head[3]
if not (epoch and last and mark) or (last > 0 and redis.call('XLEN', log) == 0) then return {'empty'} end

local offset = tonumber(ARGV[2])
local verdict, from = 'ok', string.format('%.0f-0', offset + 1)
if ARGV[1] ~= '' then
  if ARGV[1] ~= epoch then
    verdict = 'epoch'
  elseif offset > last then
    verdict = 'rollback'
  elseif offset == last then
    if ARGV[3] ~= mark then verdict = 'forked' end
  else
    -- The successor names its predecessor: that proves the position even when the entry itself
    -- is trimmed already.
    local next = redis.call('XRANGE', log, from, from)[1]
    if not next then
      verdict = 'expired'
    elseif next[2][4] ~= ARGV[3] then
      verdict = 'forked'
    end
  end
end

local answer = {verdict, epoch, head[2], mark}
local room, left = tonumber(ARGV[5]), tonumber(ARGV[4])
while verdict == 'ok' and left > 0 do
  local entries = redis.call('XRANGE', log, from, '+', 'COUNT', math.min(left, 20))
  for _, entry in ipairs(entries) do
    room = room - #entry[2][8]
    if room < 0 and #answer > 4 then return answer end
    local place = string.match(entry[1], '^%d+')
    answer[#answer + 1] = place
    answer[#answer + 1] = entry[2][4]
    answer[#answer + 1] = entry[2][2]
    answer[#answer + 1] = entry[2][8]
    from = string.format('%.0f-0', place + 1)
  end
  left = left - #entries
  if #entries < 20 then break end
end
return answer
