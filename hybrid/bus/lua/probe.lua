-- A sign that both ways to this Redis work: the answer is one, what the channel brings the other.
--
-- KEYS  1 meta (hash)
-- ARGV  1 the asking process's own channel  2 what to ring it with
-- Answer: epoch, the newest offset and its mark (nil where there is no log yet)

redis.call('PUBLISH', ARGV[1], ARGV[2])
return redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'mark')
