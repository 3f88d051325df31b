-- The keeper stores what is new: points of the history, and how the alerts stand. Nothing from
-- one who is the keeper no longer, so that nothing is stored, or raised, twice.
--
-- KEYS  1 keeper  2 alerts  3… the rings (lists)
-- ARGV  1 id  2 the alerts as JSON  3 seconds that all this is kept
--       then for each point: its ring (1, 2, …), points that the ring holds, the point
-- Answer: 1, or 0 for one who is not the keeper

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
for i = 4, #ARGV, 3 do
  local ring = KEYS[2 + ARGV[i]]
  redis.call('RPUSH', ring, ARGV[i + 2])
  redis.call('LTRIM', ring, -ARGV[i + 1], -1)
  redis.call('EXPIRE', ring, ARGV[3])
end
return 1
